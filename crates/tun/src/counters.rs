//! What the path counts. Each thread has counters of its own; whoever asks adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Why a packet was not forwarded.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $doc])* $name,)* }

        impl DropReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As metrics and logs name it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// The datagram came from an address and port that no lease has.
    UnknownSender = "unknown_sender",
    /// The inner source is not in a subnet of the peer that sent it.
    SourceNotOfSender = "source_not_of_sender",
    /// The inner destination is in no subnet of this node.
    DestinationNotOurs = "destination_not_ours",
    /// Lengths, version or segmentation data that make no sense.
    Malformed = "malformed",
    /// No peer has the destination.
    NoRoute = "no_route",
    /// TTL or hop limit ran out.
    TtlExceeded = "ttl_exceeded",
    /// Longer than the path carries, with DF.
    TooBig = "too_big",
    /// The underlay marked congestion on a packet whose transport does not know ECN.
    CongestionNotEct = "congestion_not_ect",
    /// A peer sent more than its share while the node could not keep up.
    Overload = "overload",
    /// The underlay did not take it.
    SendFailed = "send_failed",
    /// The kernel did not take it on the TUN device.
    DeviceRefused = "device_refused",
}

/// What one thread counts.
#[derive(Debug, Default)]
pub struct Counters {
    drops: [AtomicU64; DropReason::ALL.len()],
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
}

/// Sums of [`Counters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inner packets that went to peers.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Inner packets that came from peers and went to the TUN device.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts packets that were not forwarded.
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Counts packets that went to peers.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.sent_packets.fetch_add(packets, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts packets that came from peers.
    pub fn received(&self, packets: u64, bytes: u64) {
        self.received_packets.fetch_add(packets, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn add_to(&self, totals: &mut Totals) {
        totals.sent_packets += self.sent_packets.load(Ordering::Relaxed);
        totals.sent_bytes += self.sent_bytes.load(Ordering::Relaxed);
        totals.received_packets += self.received_packets.load(Ordering::Relaxed);
        totals.received_bytes += self.received_bytes.load(Ordering::Relaxed);
        for (total, counter) in totals.drops.iter_mut().zip(&self.drops) {
            *total += counter.load(Ordering::Relaxed);
        }
    }
}

/// The counters of all threads of an engine.
#[derive(Debug, Clone)]
pub struct Tally(Vec<Arc<Counters>>);

impl Tally {
    /// Of these threads.
    #[must_use]
    pub fn new(counters: Vec<Arc<Counters>>) -> Self {
        Self(counters)
    }

    /// What was counted so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counters in &self.0 {
            counters.add_to(&mut totals);
        }
        totals
    }
}

impl Totals {
    /// Packets that were not forwarded for that reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }
}
