//! A key and its value, read together.

use crate::{EndpointSlice, ServiceEndpoint, ServiceKey, ServiceSpec, ServiceValueError, ServicesConfig};

/// The value of a Services key, by the kind of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceRecord {
    /// Of `config`.
    Config(ServicesConfig),
    /// Of a `spec/` key.
    Spec(ServiceSpec),
    /// Of a `slices/` key.
    Slice(EndpointSlice),
    /// Of an `endpoints/` key.
    Endpoint(ServiceEndpoint),
}

impl ServiceRecord {
    /// Reads `value` as what stands under `key`.
    pub fn parse(key: &ServiceKey, value: &[u8]) -> Result<Self, ServiceValueError> {
        match key {
            ServiceKey::Config => ServicesConfig::parse(value).map(Self::Config),
            ServiceKey::Spec(_) => ServiceSpec::parse(value).map(Self::Spec),
            ServiceKey::Slice { .. } => EndpointSlice::parse(value).map(Self::Slice),
            ServiceKey::Endpoint { .. } => ServiceEndpoint::parse(value).map(Self::Endpoint),
        }
    }
}
