//! One record below `<prefix>/subnets/` as the store hands it over.

/// When a record was created and last written, as revisions of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revisions {
    /// Revision that created the key.
    pub created: i64,
    /// Revision of its last write.
    pub modified: i64,
}

/// A record that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// The key behind `<prefix>/subnets/`.
    pub key: String,
    /// The value's bytes.
    pub value: Vec<u8>,
    /// Its revisions.
    pub revisions: Revisions,
    /// The etcd lease that it hangs on; 0 for none, which is a reservation.
    pub lease: i64,
}
