//! WireGuard's secrets in files that only root reads: the node's key, made once and kept, and the preshared key of the network.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, ensure};
use flannel_model::{WireguardPublicKey, WireguardSecret};
use x25519_dalek::{PublicKey, StaticSecret};

/// Name of the key file in the state folder.
pub const FILE: &str = "wgkey";
/// Where flannel keeps the key unless `WIREGUARD_KEY_FILE` says otherwise.
pub const FLANNELS: &str = "/run/flannel/wgkey";
/// A key file has 44 characters and a line end; anything much longer is another file.
const LONGEST: u64 = 128;

/// The node's key pair.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// The private key.
    pub private: WireguardSecret,
    /// The public key.
    pub public: WireguardPublicKey,
}

/// Reads the key from `file`, which the node made at an earlier start (or flannel did), or makes one and keeps it there.
///
/// # Errors
/// When the file cannot be read or made, or holds something else than a key. It is never overwritten: peers know this node by
/// its key.
pub fn load_or_make(file: &Path) -> anyhow::Result<KeyPair> {
    let mend = format!("delete {}, and a new one is made", file.display());
    let private = match read(file, "the WireGuard key", &mend)? {
        Some(private) => private,
        None => {
            make(file).with_context(|| format!("cannot keep a new WireGuard key in {}", file.display()))?
        }
    };
    let public = PublicKey::from(&StaticSecret::from(private.expose()));
    Ok(KeyPair {
        private,
        public: WireguardPublicKey(public.to_bytes()),
    })
}

/// Reads the preshared key from `file`, where an operator put it on every node.
///
/// # Errors
/// When the file is missing, can be read by others than root, or holds no key.
pub fn load_preshared(file: &Path) -> anyhow::Result<WireguardSecret> {
    let mend = "make one with `wg genpsk`, the same on every node";
    let what = "the preshared key of --wireguard-psk-file";
    read(file, what, mend)?.with_context(|| format!("{what} is missing: no file {}; {mend}", file.display()))
}

fn read(file: &Path, what: &str, mend: &str) -> anyhow::Result<Option<WireguardSecret>> {
    let shown = file.display();
    let open = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open.with_context(|| format!("cannot read {what} {shown}"))?,
    };
    let mode = open.metadata()?.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "{what} {shown} has mode {:o}, so that others than root can read it; expected 0600. If nobody has read it: \
         chmod 600 {shown}. Otherwise {mend}",
        mode & 0o7777
    );
    let mut text = String::new();
    open.take(LONGEST)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {what} {shown}"))?;
    let key = text
        .trim()
        .parse()
        .with_context(|| format!("{shown} is to hold {what}, but does not; {mend}"))?;
    Ok(Some(key))
}

/// Makes a key. The file appears with its content or not at all.
fn make(file: &Path) -> io::Result<WireguardSecret> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let private = WireguardSecret::private(random);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let fresh = file.with_extension("new");
    // A leftover of a crash, which nobody has used yet.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(written, "{}", private.expose_text())?;
    written.sync_all()?;
    std::fs::rename(&fresh, file)?;
    Ok(private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_kept_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run/wgkey");
        let first = load_or_make(&file).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = load_or_make(&file).unwrap();
        assert_eq!((first.private, first.public), (second.private, second.public));
    }

    #[test]
    fn the_public_key_is_that_of_the_private_one() {
        // RFC 7748 §6.1, Alice.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        std::fs::write(&file, private).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).unwrap();
        let pair = load_or_make(&file).unwrap();
        assert_eq!(
            pair.public.to_string(),
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        );
    }

    #[test]
    fn a_bad_key_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for (text, mode, part) in [
            ("x", 0o600, "does not"),
            ("", 0o600, "does not"),
            ("x", 0o644, "mode 644"),
        ] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let error = format!("{:#}", load_or_make(&file).unwrap_err());
            assert!(error.contains(part), "{error}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn the_preshared_key_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("psk");
        let error = format!("{:#}", load_preshared(&file).unwrap_err());
        assert!(
            error.contains("wg genpsk") && error.contains("missing"),
            "{error}"
        );
        let key = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=";
        std::fs::write(&file, format!("{key}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(load_preshared(&file).unwrap().expose_text(), key);
    }
}
