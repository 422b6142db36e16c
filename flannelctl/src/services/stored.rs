//! What stands in etcd below `<prefix>/services/v1/`.

use flannel_model::{
    EndpointSlice, EtcdPrefix, ServiceEndpoint, ServiceKey, ServiceName, ServiceRecord, ServiceSpec,
    ServicesConfig,
};
use flannel_store::{KeyValue, Revision, Store, StoreError};

use crate::output::{Rejected, with_causes};

/// Every record, taken apart.
#[derive(Debug, Default)]
pub struct Stored {
    /// The raw keys and values, in the order of their keys, with the revision of their creation.
    pub raw: Vec<(String, Vec<u8>, Revision)>,
    /// Revision of the last change of a record that is there.
    pub revision: Revision,
    /// `None` when there is none or it is bad.
    pub config: Option<ServicesConfig>,
    pub specs: Vec<(ServiceName, ServiceSpec)>,
    pub slices: Vec<(ServiceName, EndpointSlice)>,
    pub endpoints: Vec<(ServiceKey, ServiceEndpoint)>,
    pub rejected: Vec<Rejected>,
}

impl Stored {
    /// Reads everything, at one revision.
    pub async fn read<S: Store>(store: &S, prefix: &EtcdPrefix) -> Result<Self, StoreError> {
        let range = prefix.services();
        let listing = store.list(&range).await?;
        Ok(Self::sort(&range, listing.kvs))
    }

    /// Sorts records by what they are.
    pub fn sort(range: &str, kvs: Vec<KeyValue>) -> Self {
        let mut stored = Self::default();
        for kv in kvs {
            let rest = kv.key.strip_prefix(range).unwrap_or(&kv.key).to_owned();
            if let Err(reason) = stored.add(&rest, &kv.value) {
                stored.rejected.push(Rejected {
                    key: kv.key.clone(),
                    reason,
                });
            }
            stored.revision = stored.revision.max(kv.mod_revision);
            stored.raw.push((rest, kv.value, kv.create_revision));
        }
        stored
    }

    /// The value under a key, whatever it is.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        let at = self
            .raw
            .binary_search_by(|(other, _, _)| other.as_str().cmp(key))
            .ok()?;
        self.raw.get(at).map(|(_, value, _)| value.as_slice())
    }

    fn add(&mut self, rest: &str, value: &[u8]) -> Result<(), String> {
        let key = ServiceKey::parse(rest).map_err(|error| with_causes(&error))?;
        let record = ServiceRecord::parse(&key, value).map_err(|error| with_causes(&error))?;
        match (key, record) {
            (ServiceKey::Spec(service), ServiceRecord::Spec(spec)) => self.specs.push((service, spec)),
            (ServiceKey::Slice { service, .. }, ServiceRecord::Slice(slice)) => {
                self.slices.push((service, slice));
            }
            (key, ServiceRecord::Endpoint(endpoint)) => self.endpoints.push((key, endpoint)),
            (_, ServiceRecord::Config(config)) => self.config = Some(config),
            // The kind of a record follows from its key.
            (_, ServiceRecord::Spec(_) | ServiceRecord::Slice(_)) => {}
        }
        Ok(())
    }
}
