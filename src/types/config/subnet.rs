//! A range of addresses: `10.0.0.0/8`, `fd00::/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The addresses whose first bits are those of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    bits: u8,
}

/// A text that is no [`Subnet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a subnet: write <address>/<bits>, such as 10.0.0.0/8 or fd00::/8")]
pub struct SubnetError(String);

impl Subnet {
    /// Whether `address`, of the same family, lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(base), IpAddr::V4(other)) => same_start(base.to_bits().into(), other.to_bits().into(), 32, self.bits),
            (IpAddr::V6(base), IpAddr::V6(other)) => same_start(base.to_bits(), other.to_bits(), 128, self.bits),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Whether two numbers of `width` bits agree in the first `bits`.
fn same_start(one: u128, other: u128, width: u8, bits: u8) -> bool {
    (one ^ other).checked_shr(u32::from(width - bits)).unwrap_or(0) == 0
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let refuse = || SubnetError(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(refuse)?;
        let address: IpAddr = address.parse().map_err(|_not_an_address| refuse())?;
        let bits: u8 = bits.parse().map_err(|_not_a_number| refuse())?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        if bits > widest { Err(refuse()) } else { Ok(Subnet { address, bits }) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::Subnet;

    #[test]
    fn addresses_are_in_a_subnet_by_their_first_bits() {
        let table = [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.168.1.7/24", "192.168.1.200", true),
            ("192.168.1.7/32", "192.168.1.8", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("fd00::/8", "fdab::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("0.0.0.0/0", "::1", false),
        ];
        for (subnet, address, inside) in table {
            let parsed: Subnet = subnet.parse().unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), inside, "{address} in {subnet}");
            assert_eq!(parsed.to_string(), subnet);
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1", ""] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
