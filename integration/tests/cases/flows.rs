//! Flows of UDP as a node's kernel tracks them.

use anyhow::Result;
use flannel_lab::Node;

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UdpFlow {
    /// The kernel's number for it. It is made from where the flow lies in memory: a later flow may get it again.
    pub id: String,
    /// Source and destination of the packet that began it.
    pub original: (String, String),
    /// The same of packets the other way.
    pub reply: (String, String),
}

impl UdpFlow {
    /// Every flow of a family.
    pub fn all(node: &Node, ipv4: bool) -> Result<Vec<Self>> {
        let family = if ipv4 { "ipv4" } else { "ipv6" };
        let text = node.run(&["conntrack", "-L", "-f", family, "-p", "udp", "-o", "id"])?;
        Ok(text.lines().filter_map(Self::read).collect())
    }

    /// `udp 17 29 src=10.5.1.2 dst=10.96.0.10 sport=40000 dport=53 src=10.5.1.3 dst=10.5.1.2 sport=8080 dport=40000 use=1 id=1234`
    fn read(line: &str) -> Option<Self> {
        let values = |name: &str| {
            let mut found = line.split_whitespace().filter_map(|word| word.strip_prefix(name));
            (found.next().map(str::to_owned), found.next().map(str::to_owned))
        };
        let (sources, destinations) = (values("src="), values("dst="));
        Some(Self {
            id: values("id=").0?,
            original: (sources.0?, destinations.0?),
            reply: (sources.1?, destinations.1?),
        })
    }

    /// Whether its client talks to `service` and gets its answers from `pod`. An answer that was under way when its flow was ended begins a
    /// new one, the other way round.
    pub fn is_through(&self, service: &str, pod: &str) -> bool {
        (self.original.1 == service && self.reply.0 == pod)
            || (self.original.0 == pod && self.reply.1 == service)
    }

    /// Whether `client` began it with `pod` itself.
    pub fn is_direct(&self, client: &str, pod: &str) -> bool {
        self.original == (client.to_owned(), pod.to_owned()) && self.reply.0 == pod
    }
}
