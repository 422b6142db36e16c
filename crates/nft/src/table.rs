//! A rendered table and the hash that tells it from others.

use std::fmt;

/// Stands before the hash in a table's comment.
const HASH_MARK: &str = "flannel-hash=";
/// Hexadecimal digits of a hash of 128 bits.
const HASH_DIGITS: usize = 32;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// What identifies a table in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Its family.
    pub family: Family,
    /// Its name within the family.
    pub name: &'static str,
}

impl TableName {
    /// Masquerading and forwarding for IPv4: flannel's own name, so that one takes over from the other.
    pub const MASQUERADE: Self = Self {
        family: Family::Ip,
        name: "flannel-ipv4",
    };
    /// The same for IPv6.
    pub const MASQUERADE_V6: Self = Self {
        family: Family::Ip6,
        name: "flannel-ipv6",
    };
    /// Who may send what through the tunnel, for IPv4.
    pub const ENCAP: Self = Self {
        family: Family::Ip,
        name: "flannel-encap",
    };
    /// The same for IPv6.
    pub const ENCAP_V6: Self = Self {
        family: Family::Ip6,
        name: "flannel-encap",
    };
    /// Guard and masquerading of Services.
    pub const SERVICES: Self = Self {
        family: Family::Ip,
        name: "flannel-services",
    };
    /// Services of IPv4 on kernels without IPVS.
    pub const SERVICE_NAT: Self = Self {
        family: Family::Ip,
        name: flannel_plan::nft::TABLE,
    };
    /// Services of IPv6 on kernels without IPVS.
    pub const SERVICE_NAT6: Self = Self {
        family: Family::Ip6,
        name: flannel_plan::nft::TABLE,
    };
    /// The same for IPv6.
    pub const SERVICES_V6: Self = Self {
        family: Family::Ip6,
        name: "flannel-services",
    };
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A table as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    name: TableName,
    body: String,
}

impl Table {
    pub(crate) fn new(name: TableName, body: String) -> Self {
        Self { name, body }
    }

    /// Its identity.
    pub fn name(&self) -> TableName {
        self.name
    }

    /// Hash of its text: 32 hexadecimal digits.
    pub fn hash(&self) -> String {
        format!("{:032x}", fnv1a(self.body.as_bytes()))
    }

    /// Commands for `nft -f` that replace the table in one transaction: `add` so that `delete` cannot fail, then the new one.
    pub fn transaction(&self) -> String {
        self.removal() + &self.declaration()
    }

    /// Commands that remove whatever table stands there.
    pub fn removal(&self) -> String {
        let name = self.name;
        format!("add table {name}\ndelete table {name}\n")
    }

    /// The table itself: what it does not have yet is added, what is there stays.
    pub(crate) fn declaration(&self) -> String {
        let (name, body, hash) = (self.name, &self.body, self.hash());
        format!("table {name} {{\n  comment \"{HASH_MARK}{hash}\"\n{body}}}\n")
    }
}

/// The hash in a listing of a table, if its comment has one.
pub(crate) fn hash_in_listing(listing: &str) -> Option<String> {
    let (_, rest) = listing.split_once(HASH_MARK)?;
    let hash: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    (hash.len() == HASH_DIGITS).then_some(hash)
}

/// FNV-1a of 128 bits, with the constants of its authors: the same on every release, which the standard library's hasher
/// does not promise.
fn fnv1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_function() {
        assert_eq!(fnv1a(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_listing_gives_the_hash_back() {
        let table = Table::new(TableName::SERVICES, "  chain c {\n  }\n".to_owned());
        assert_eq!(hash_in_listing(&table.transaction()), Some(table.hash()));
        let other = Table::new(TableName::SERVICES, "  chain d {\n  }\n".to_owned());
        assert_ne!(table.hash(), other.hash());
        for listing in [
            "",
            "table ip x {\n}",
            "comment \"flannel-hash=\"",
            "comment \"flannel-hash=12\"",
        ] {
            assert_eq!(hash_in_listing(listing), None, "{listing}");
        }
    }
}
