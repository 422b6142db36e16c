//! What is asked of the kernel beyond one packet a system call. Each is tried; what a kernel does not have is left out.

use std::fmt;
use std::str::FromStr;

/// What to ask for, or what was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Several queues of the device, a thread each (IFF_MULTI_QUEUE, Linux 3.8).
    pub multi_queue: bool,
    /// TCP super-packets on the device (IFF_VNET_HDR, TUN_F_TSO4 and TUN_F_TSO6).
    pub tso: bool,
    /// UDP super-packets on the device (TUN_F_USO4 and TUN_F_USO6, Linux 6.2).
    pub uso: bool,
    /// Trains of datagrams sent in one call (UDP_SEGMENT, Linux 4.18).
    pub udp_segment: bool,
    /// Trains of datagrams received in one call (UDP_GRO, Linux 5.0).
    pub udp_gro: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self {
        multi_queue: true,
        tso: true,
        uso: true,
        udp_segment: true,
        udp_gro: true,
    };
    /// Plain packets, one a call, on one queue: what every kernel has.
    pub const NONE: Self = Self {
        multi_queue: false,
        tso: false,
        uso: false,
        udp_segment: false,
        udp_gro: false,
    };
    /// Their names, as they are typed and shown.
    pub const NAMES: [&str; 5] = ["multi-queue", "tso", "uso", "udp-segment", "udp-gro"];

    /// Each with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, bool); 5] {
        let [queues, tso, uso, segment, gro] = Self::NAMES;
        [
            (queues, self.multi_queue),
            (tso, self.tso),
            (uso, self.uso),
            (segment, self.udp_segment),
            (gro, self.udp_gro),
        ]
    }

    /// Whether the device must say something of each packet (IFF_VNET_HDR).
    #[must_use]
    pub fn of_device(&self) -> bool {
        self.multi_queue || self.tso || self.uso
    }

    fn by_name(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "multi-queue" => Some(&mut self.multi_queue),
            "tso" => Some(&mut self.tso),
            "uso" => Some(&mut self.uso),
            "udp-segment" => Some(&mut self.udp_segment),
            "udp-gro" => Some(&mut self.udp_gro),
            _ => None,
        }
    }
}

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is none of all, none, {}", Offloads::NAMES.join(", "))]
pub struct UnknownOffload {
    name: String,
}

impl FromStr for Offloads {
    type Err = UnknownOffload;

    /// `all`, `none`, or names with commas between them.
    fn from_str(text: &str) -> Result<Self, UnknownOffload> {
        let mut offloads = Self::NONE;
        match text.trim() {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(offloads),
            _ => {}
        }
        for name in text.split(',').map(str::trim) {
            *offloads.by_name(name).ok_or_else(|| UnknownOffload {
                name: name.to_owned(),
            })? = true;
        }
        Ok(offloads)
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<&str> = self
            .named()
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();
        f.write_str(if on.is_empty() { "none" } else { "" })?;
        f.write_str(&on.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_back() {
        for text in ["none", "tso,udp-gro", "multi-queue,tso,uso,udp-segment,udp-gro"] {
            assert_eq!(text.parse::<Offloads>().unwrap().to_string(), text);
        }
        assert_eq!("all".parse(), Ok(Offloads::ALL));
        assert_eq!(" uso , tso ".parse::<Offloads>().unwrap().to_string(), "tso,uso");
        for bad in ["", "gro", "tso,", "all,tso", "TSO"] {
            let error = bad.parse::<Offloads>().unwrap_err().to_string();
            assert!(error.contains("none of all, none, multi-queue, tso"), "{error}");
        }
    }
}
