//! Where this node tells others to reach it.
//!
//! What the operator configured; without that, the addresses of this machine's interfaces. Peers also try where a node's connections
//! come from, so that a node behind a router is found as long as its port is forwarded unchanged.

use std::net::{IpAddr, SocketAddr};

use garage_types::config::RpcConfig;

/// The addresses to tell others, with ports.
///
/// `interfaces`: the machine's own addresses.
pub fn advertised(rpc: &RpcConfig, interfaces: &[IpAddr]) -> Vec<String> {
    if let Some(public) = &rpc.public_addr {
        return vec![public.to_string()];
    }
    let bound = rpc.bind_addr;
    let candidates = if bound.ip().is_unspecified() { interfaces } else { &[bound.ip()] };
    // `[::]` listens on IPv4 as well.
    let is_bound = |ip: &&IpAddr| !bound.ip().is_unspecified() || bound.is_ipv6() || ip.is_ipv4();
    let in_subnet = |ip: &&IpAddr| rpc.public_addr_subnet.is_none_or(|subnet| subnet.contains(**ip));
    let is_of_use = |ip: &&IpAddr| !bound.ip().is_unspecified() || reachable_from_elsewhere(**ip);
    let chosen = candidates.iter().filter(is_bound).filter(in_subnet).filter(is_of_use);
    chosen.map(|ip| SocketAddr::new(*ip, bound.port()).to_string()).collect()
}

fn reachable_from_elsewhere(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

/// The addresses of this machine's interfaces; none, with a word in the log, when the system does not tell.
pub fn interfaces() -> Vec<IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.iter().map(if_addrs::Interface::ip).collect(),
        Err(error) => {
            tracing::warn!(%error, "the system does not tell this machine's addresses; set rpc_public_addr");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use garage_types::config::RpcConfig;

    use super::advertised;

    fn rpc(bind: &str, public: Option<&str>, subnet: Option<&str>) -> RpcConfig {
        RpcConfig {
            secret: None,
            bind_addr: bind.parse().unwrap(),
            bind_outgoing: false,
            public_addr: public.map(|address| address.parse().unwrap()),
            public_addr_subnet: subnet.map(|subnet| subnet.parse().unwrap()),
            bootstrap_peers: vec![],
            timeout: std::time::Duration::from_secs(1),
            ping_timeout: std::time::Duration::from_secs(1),
        }
    }

    fn interfaces() -> Vec<IpAddr> {
        ["127.0.0.1", "10.1.0.1", "192.0.2.1", "::1", "fe80::1", "fd00::1"].map(|ip| ip.parse().unwrap()).to_vec()
    }

    #[test]
    fn a_configured_address_is_the_only_one() {
        assert_eq!(
            advertised(&rpc("[::]:3901", Some("node.example:4901"), Some("10.0.0.0/8")), &interfaces()),
            ["node.example:4901"]
        );
    }

    #[test]
    fn without_one_the_machines_addresses_are_told_as_far_as_others_can_use_them() {
        let told = |bind, subnet| advertised(&rpc(bind, None, subnet), &interfaces());
        assert_eq!(told("[::]:3901", None), ["10.1.0.1:3901", "192.0.2.1:3901", "[fd00::1]:3901"]);
        assert_eq!(told("0.0.0.0:3902", None), ["10.1.0.1:3902", "192.0.2.1:3902"], "it does not listen on IPv6");
        assert_eq!(told("[::]:3901", Some("10.0.0.0/8")), ["10.1.0.1:3901"]);
        assert_eq!(told("[::]:3901", Some("fd00::/8")), ["[fd00::1]:3901"]);
        assert_eq!(told("127.0.0.1:3901", None), ["127.0.0.1:3901"], "all nodes may be on one machine");
        assert!(told("127.0.0.1:3901", Some("10.0.0.0/8")).is_empty());
    }
}
