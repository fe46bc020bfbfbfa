//! Networks of addresses.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use regorus::Value;

use super::{Answer, texts};

pub(super) fn cidr_contains(arguments: &[Value]) -> Answer {
    let Some((network, other)) = texts(arguments) else {
        return Ok(None);
    };
    let Some(network) = net(network) else {
        return Ok(None);
    };
    let other = match other.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address.to_canonical())),
        Err(_) => net(other),
    };
    Ok(other.map(|other| Value::from(network.contains(&other))))
}

/// A network; one of IPv4 written as IPv6 is the one that it stands for.
fn net(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    if let (IpAddr::V4(address), Some(length)) = (
        net.trunc().addr().to_canonical(),
        net.prefix_len().checked_sub(96),
    ) && matches!(net, IpNet::V6(_))
    {
        return Ipv4Net::new(address, length).ok().map(IpNet::V4);
    }
    Some(net)
}
