//! Nodes as programs meet them: real sockets on port 0, targets that run here.

#[cfg(test)]
mod associate;
#[cfg(test)]
mod embed;
#[cfg(test)]
mod families;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod lookups;
#[cfg(test)]
mod loops;
#[cfg(test)]
#[path = "../both/name_server.rs"]
mod name_server;
#[cfg(test)]
mod plans;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod socks4;
#[cfg(test)]
mod socks5;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tcp;
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod trunks;
#[cfg(test)]
mod udp;
