//! Images made on the spot: no registry, one static busybox.

use anyhow::{Context, Result};

use super::Home;
use crate::node::Node;

/// The image for containers. Without a command it answers each TCP connection to [`PORT`] with its host name.
pub const IMAGE: &str = "localhost/busybox:1";
/// Where a container of [`IMAGE`] answers.
pub const PORT: u16 = 80;
/// What holds a pod's namespaces.
pub(super) const PAUSE: &str = "localhost/pause:1";

const SCRIPT: &str = include_str!("image.sh");

/// Files of the images in `home`.
pub(super) const FILES: [&str; 2] = ["busybox.tar", "pause.tar"];

/// Makes both images.
pub(super) fn build(node: &Node, home: &Home) -> Result<()> {
    let port = PORT.to_string();
    let commands = [
        vec!["nc", "-ll", "-p", &port, "-e", "hostname"],
        vec!["sleep", "2147483647"],
    ];
    for ((name, file), command) in [IMAGE, PAUSE].into_iter().zip(FILES).zip(commands) {
        let (folder, out) = (home.path(&format!("{file}.d"))?, home.path(file)?);
        let start = ["sh", "-ec", SCRIPT, "image.sh", &folder, name, &out];
        node.run(&[&start[..], &command].concat())
            .with_context(|| format!("cannot make the image {name}"))?;
    }
    Ok(())
}
