//! What the IPIP backend reads from the network config. Its leases carry no data.

use serde_json::value::RawValue;

use crate::FieldError;
use crate::options::Options;

/// The `Backend` object of the network config for `"Type": "ipip"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpipOptions {
    /// Plain routes to peers on the same link.
    pub direct_routing: bool,
}

impl IpipOptions {
    /// Reads the options, names in any case, unknown ones ignored.
    ///
    /// # Errors
    /// Every field that holds what it cannot hold.
    pub fn parse(backend: &RawValue) -> Result<Self, Vec<FieldError>> {
        let fields = Options::fields(backend)?;
        let mut read = Options::new(&fields);
        let options = Self {
            direct_routing: read.flag("DirectRouting"),
        };
        read.finish(options)
    }
}
