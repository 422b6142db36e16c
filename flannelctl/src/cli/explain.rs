//! `flannelctl explain`.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use flannel_model::ServiceProtocol;

use super::{NodeArguments, SocketArgument};

/// What is to be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A port of a Service.
    Port(SocketAddr),
    /// Any address.
    Address(IpAddr),
}

fn target(text: &str) -> Result<Target, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = || bare.parse().map(Target::Address);
    text.parse().map(Target::Port).or_else(|_| address()).map_err(|_| {
        "expected an address (10.5.7.3, fd00:5:0:7::3) or an address with its port (10.96.0.10:80, [fd00:96::a]:80)".to_owned()
    })
}

#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// An address of a Service with its port, such as 10.96.0.10:80 or [fd00:96::a]:80, or any address alone
    #[arg(value_name = "IP:PORT|ADDRESS", value_parser = target)]
    pub address: Target,

    /// Only this protocol, of an address with a port
    #[arg(long, value_enum, ignore_case = true)]
    pub protocol: Option<Protocol>,

    #[command(flatten)]
    pub node: NodeArguments,

    #[command(flatten)]
    pub socket: SocketArgument,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl From<Protocol> for ServiceProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_with_a_port_or_alone() {
        assert_eq!(
            target("10.96.0.10:80"),
            Ok(Target::Port(([10, 96, 0, 10], 80).into()))
        );
        assert_eq!(target("10.5.7.3"), Ok(Target::Address([10, 5, 7, 3].into())));
        for text in ["fd00::3", "[fd00::3]"] {
            assert_eq!(
                target(text),
                Ok(Target::Address("fd00::3".parse().unwrap())),
                "{text}"
            );
        }
        assert!(matches!(target("[fd00::3]:80"), Ok(Target::Port(_))));
        assert!(target("shop/web").is_err());
    }
}
