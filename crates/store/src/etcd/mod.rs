//! The store on a real etcd.

mod about;
mod calls;
mod classify;
mod keeper;
mod list;
mod member;
mod ops;
mod stream;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::credentials::Credentials;
use crate::{EtcdOptions, StoreError};
pub use about::MemberStatus;
use keeper::Keepers;
use member::Member;
use watch::Streams;

/// Longest time that one call takes, whatever the servers do.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// A client of one etcd cluster. Cheap to clone: all clones share their connections.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    members: Vec<Member>,
    /// Index of the member that calls go to first: the last one that worked.
    preferred: AtomicUsize,
    streams: Streams,
    keepers: Keepers,
    /// A large answer did not come through in time.
    short_pages: AtomicBool,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<&str> = self.shared.members.iter().map(Member::name).collect();
        f.debug_struct("EtcdStore")
            .field("endpoints", &endpoints)
            .finish()
    }
}

impl EtcdStore {
    /// Prepares a client. Nothing is sent before the first call, so success says nothing about etcd.
    ///
    /// # Errors
    /// Options that cannot work, all at once: an endpoint that is no address, or plain http to another host without leave, a
    /// TLS file that cannot be read, a certificate without its key, a user name without a password.
    pub fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        let addresses = options.addresses();
        let (addresses, mut problems) = match addresses {
            Ok(addresses) => (addresses, Vec::new()),
            Err(problems) => (Vec::new(), problems),
        };
        let credentials = Credentials::read(options)
            .map_err(|mut more| problems.append(&mut more))
            .ok();
        let Some(credentials) = credentials.filter(|_| problems.is_empty()) else {
            return Err(StoreError::config(problems.join("; ")));
        };
        let credentials = Arc::new(credentials);
        let connect_timeout = connect_timeout(addresses.len());
        let members = addresses
            .into_iter()
            .map(|address| Member::new(address, credentials.clone(), connect_timeout))
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                members,
                preferred: AtomicUsize::new(0),
                streams: Streams::default(),
                keepers: Keepers::default(),
                short_pages: AtomicBool::new(false),
            }),
        })
    }

    /// Members in the order in which a call tries them.
    fn order(&self) -> impl Iterator<Item = (usize, &Member)> {
        let members = &self.shared.members;
        let first = self.preferred();
        (0..members.len()).filter_map(move |i| {
            let index = (first + i) % members.len();
            members.get(index).map(|member| (index, member))
        })
    }

    fn preferred(&self) -> usize {
        self.shared.preferred.load(Ordering::Relaxed)
    }

    fn prefer(&self, index: usize) {
        self.shared.preferred.store(index, Ordering::Relaxed);
    }

    /// Calls go to the next member from now on, unless somebody else has seen to it already.
    fn turn_from(&self, index: usize) {
        let next = (index + 1) % self.shared.members.len();
        let _ = self
            .shared
            .preferred
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Connections may take four fifths of a call's deadline together, so that the last of the members can still answer
/// when the others drop packets.
fn connect_timeout(members: usize) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX).max(1);
    (CALL_DEADLINE * 4 / 5 / members).max(Duration::from_millis(200))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: EtcdOptions) -> String {
        EtcdStore::connect(options).unwrap_err().to_string()
    }

    #[test]
    fn options_that_cannot_work_name_the_flag_and_the_file() {
        let base = EtcdOptions::default;
        let error = refused(EtcdOptions {
            ca_file: Some("/nonexistent/ca.pem".into()),
            ..base()
        });
        assert!(
            error.contains("/nonexistent/ca.pem") && error.contains("--etcd-cafile"),
            "{error}"
        );
        let error = refused(EtcdOptions {
            cert_file: Some("/nonexistent/c.pem".into()),
            ..base()
        });
        assert!(error.contains("without --etcd-keyfile"), "{error}");
        let error = refused(EtcdOptions {
            key_file: Some("/dev/null".into()),
            ..base()
        });
        assert!(error.contains("without --etcd-certfile"), "{error}");
        let error = refused(EtcdOptions {
            ca_file: Some("/dev/null".into()),
            ..base()
        });
        assert!(error.contains("/dev/null") && error.contains("PEM"), "{error}");
        let error = refused(EtcdOptions {
            username: Some("u".to_owned()),
            ..base()
        });
        assert!(error.contains("--etcd-username"), "{error}");
        let error = refused(EtcdOptions {
            endpoints: vec![" , ".to_owned()],
            ..base()
        });
        assert!(error.contains("no etcd endpoint"), "{error}");
    }

    #[test]
    fn one_failure_turns_to_the_next_member_once() {
        let store = EtcdStore::connect(EtcdOptions::default()).unwrap();
        let first = |store: &EtcdStore| store.order().map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(first(&store), [0, 1]);
        store.turn_from(0);
        store.turn_from(0);
        assert_eq!(first(&store), [1, 0]);
    }
}
