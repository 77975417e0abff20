//! Who is behind an address, when something is shared out among those who connect.
//!
//! Whoever has an IPv6 address has all 2⁶⁴ others of its network, too: counted one by one, they would take any share many times over.

use std::net::IpAddr;

/// Where a connection comes from. Whoever can connect from one address of an origin can from all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Ipv4([u8; 4]),
    /// The first 64 bits.
    Ipv6Network([u8; 8]),
    /// A Unix socket, or a simulated network.
    NoAddress,
}

impl Origin {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(ip) => Origin::Ipv4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Origin::Ipv6Network([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;

    #[test]
    fn addresses_of_one_ipv6_network_are_one_origin_and_mapped_ones_that_of_ipv4() {
        let of = |address: &str| Origin::of(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
