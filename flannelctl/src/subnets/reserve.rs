//! `flannelctl subnets reserve` and `release`.

use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue};
use flannel_store::{Renewal, Replaced, Store};

use super::key::{is_meant, parse};
use super::record::{Listing, Record, read};
use crate::failure::Failure;
use crate::output::{Output, span};

/// Revision of a key that does not exist.
const ABSENT: i64 = 0;

/// What is reserved for whom.
#[derive(Debug)]
pub struct Reservation<'a> {
    /// The subnet, or both.
    pub subnet: &'a str,
    /// The node's address.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// Keeps a subnet for the node with an address. The node takes it at its next start, and it never expires.
pub async fn reserve<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    wanted: &Reservation<'_>,
    output: &mut Output,
) -> Result<(), Failure> {
    let key = parse(wanted.subnet)?;
    let listing = read(store, prefix).await?;
    check(&listing, &key, wanted)?;
    let value = LeaseValue {
        public_ip: wanted.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: wanted.public_ipv6,
        backend_type: None,
        backend_data: None,
        backend_v6_data: None,
        node_id: None,
        reserved: true,
    };
    let full = prefix.lease(&key);
    match store
        .replace(&full, &value.to_json(), ABSENT, Renewal::None)
        .await?
    {
        Replaced::Won { .. } => {
            output.push(&format!("{key} reserved\n"));
            Ok(())
        }
        Replaced::Lost => Err(Failure::Taken(format!(
            "{key} was taken a moment ago; see flannelctl subnets show {key}"
        ))),
    }
}

/// Refuses what nobody could use, or somebody uses already.
fn check(listing: &Listing, key: &LeaseKey, wanted: &Reservation<'_>) -> Result<(), Failure> {
    let wrong = |problem: String| Err(Failure::Usage(anyhow::anyhow!(problem)));
    let Some(pools) = &listing.pools else {
        return Err(Failure::NotFound(
            "there is no network config that can be used, so nothing says which subnets there are; see flannelctl check-config --etcd"
                .to_owned(),
        ));
    };
    if !key.subnets().same_families(pools) {
        return wrong(format!(
            "{key} does not have the families of the network: name one subnet of each"
        ));
    }
    let ipv4 = key
        .ipv4()
        .zip(pools.ipv4())
        .is_none_or(|(subnet, pool)| pool.offers(&subnet));
    let ipv6 = key
        .ipv6()
        .zip(pools.ipv6())
        .is_none_or(|(subnet, pool)| pool.offers(&subnet));
    if !ipv4 || !ipv6 {
        return wrong(format!(
            "{key} is none of the subnets that the network hands out; see flannelctl config"
        ));
    }
    if key.ipv4().is_some() && wanted.public_ip.is_none() {
        return wrong("--public-ip is missing: whose subnet shall it be?".to_owned());
    }
    if key.ipv4().is_none() && wanted.public_ipv6.is_none() {
        return wrong("--public-ipv6 is missing: whose subnet shall it be?".to_owned());
    }
    match listing.records.iter().find(|record| record.key.overlaps(key)) {
        Some(holder) => Err(Failure::Taken(format!(
            "{key} is taken: {} belongs to {}",
            holder.key,
            holder.holder()
        ))),
        None => Ok(()),
    }
}

/// Gives a reservation, or with `force` any lease, back.
pub async fn release<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    subnet: &str,
    force: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    parse(subnet)?;
    let listing = read(store, prefix).await?;
    let found = listing
        .records
        .iter()
        .find(|record| is_meant(&record.key, subnet));
    let Some(record) = found else {
        return Err(Failure::NotFound(format!(
            "nobody holds {subnet}; see flannelctl subnets"
        )));
    };
    if record.is_in_use() && !force {
        return Err(Failure::Taken(in_use(record)));
    }
    match store
        .delete_if(&prefix.lease(&record.key), record.kv.mod_revision)
        .await?
    {
        true => {
            output.push(&format!("{} released\n", record.key));
            Ok(())
        }
        false => Err(Failure::Taken(format!(
            "{} was changed a moment ago and is left alone; see flannelctl subnets show {}",
            record.key, record.key
        ))),
    }
}

fn in_use(record: &Record) -> String {
    let renewed = record.lifetime.map_or_else(String::new, |life| {
        format!(
            ", renewed {} ago",
            span(life.granted.saturating_sub(life.left).into())
        )
    });
    format!(
        "{} is in use by {}{renewed}: a node that runs claims it again at once. Stop the node first, or wait until it expires; \
         --force deletes it all the same",
        record.key,
        record.holder()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::NewLease;
    use flannel_store::memory::MemoryStore;

    use crate::cli::Format;

    async fn network() -> (MemoryStore, EtcdPrefix) {
        let store = MemoryStore::new();
        store
            .put("/n/config", r#"{"Network":"10.5.0.0/16"}"#)
            .await
            .unwrap();
        let held = r#"{"PublicIP":"192.168.50.11","BackendType":"host-gw"}"#;
        store
            .create("/n/subnets/10.5.1.0-24", held, NewLease::any(86_400), &[])
            .await
            .unwrap();
        (store, EtcdPrefix::new("/n"))
    }

    fn output() -> Output {
        Output::new(Format::Table)
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_reserved_is_refused_with_its_reason() {
        let (store, prefix) = network().await;
        for (subnet, public_ip, part) in [
            (
                "10.5.1.0/24",
                Some([192, 168, 50, 12]),
                "belongs to 192.168.50.11",
            ),
            ("10.6.1.0/24", Some([192, 168, 50, 12]), "none of the subnets"),
            ("10.5.2.0/25", Some([192, 168, 50, 12]), "none of the subnets"),
            ("10.5.2.0/24,fd00::/64", Some([192, 168, 50, 12]), "families"),
            ("10.5.2.0/24", None, "--public-ip"),
            ("junk", Some([192, 168, 50, 12]), "no subnet"),
        ] {
            let wanted = Reservation {
                subnet,
                public_ip: public_ip.map(Ipv4Addr::from),
                public_ipv6: None,
            };
            let failure = reserve(&store, &prefix, &wanted, &mut output())
                .await
                .unwrap_err();
            assert!(format!("{failure:?}").contains(part), "{subnet}: {failure:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_in_use_is_released_only_by_force() {
        let (store, prefix) = network().await;
        let held = "10.5.1.0/24";
        let failure = release(&store, &prefix, held, false, &mut output())
            .await
            .unwrap_err();
        assert!(
            matches!(&failure, Failure::Taken(text) if text.contains("--force")),
            "{failure:?}"
        );
        release(&store, &prefix, held, true, &mut output()).await.unwrap();
        let gone = release(&store, &prefix, held, true, &mut output())
            .await
            .unwrap_err();
        assert!(matches!(gone, Failure::NotFound(_)), "{gone:?}");
    }
}
