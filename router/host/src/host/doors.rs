//! Ports that plugins listen at: which there are, and who connected. The sockets are the node's.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::mpsc::error::TrySendError;

use super::Host;
use crate::{
    event::{ErrorCode, Principal, Refusal},
    mail::Owner,
    network::{Datagram, Pipe, SocketKind},
    principal::Task,
    transaction::Limit,
    wires::Visitor,
};

/// Visitors and datagrams find room as long as no more than this part of all that may wait, waits.
const STRANGERS_PART: u32 = 4;

impl Host {
    /// The ports that an instance listens at, by what it asks for and what it is granted.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn doors(&self, instance: &str) -> Result<Vec<(SocketKind, u16)>, Refusal> {
        let edition = self.shared.find(instance)?.edition();
        let granted = &edition.plugin().granted.sockets;
        Ok(granted.iter().filter_map(|word| door(word)).collect())
    }

    /// Somebody connected to such a port: the instance's node principal is told, and has the
    /// connection. Otherwise it is closed.
    ///
    /// # Errors
    /// There is no such instance or port, or too many events wait.
    pub fn visit(
        &self,
        instance: &str,
        (kind, port): (SocketKind, u16),
        remote: IpAddr,
        pipe: Box<dyn Pipe>,
    ) -> Result<(), Refusal> {
        if !self.doors(instance)?.contains(&(kind, port)) {
            let none = "the plugin does not listen there";
            return Err(Refusal::new(ErrorCode::NotFound, none));
        }
        let owner = self.shared.owner(instance, Principal::Node)?;
        if let Some(refusal) = owner.loaded.health(&owner.principal).closed() {
            return Err(refusal);
        }
        let visitor = Visitor {
            kind,
            port,
            remote,
            pipe,
        };
        let most = owner.strangers();
        let offered = self.shared.post(&owner)?.offer(Task::Visit(visitor), most);
        offered.map_err(|error| {
            if let TrySendError::Full(()) = error {
                owner.loaded.figures.hits(&[Limit::Waiting]);
            }
            Refusal::new(ErrorCode::Unavailable, Limit::Waiting.mend())
        })
    }
}

impl Host {
    /// The ports of an instance to which datagrams come, by what it asks for and what it is granted.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn datagram_ports(&self, instance: &str) -> Result<Vec<u16>, Refusal> {
        let edition = self.shared.find(instance)?.edition();
        let granted = edition.plugin().granted.sockets.iter();
        let ports = granted.filter_map(|word| word.strip_prefix("udp:")?.parse().ok());
        Ok(ports.collect())
    }

    /// A datagram came to such a port: the instance's node principal is told, if not too many events
    /// wait for it.
    pub fn datagram(&self, datagram: Datagram) {
        let Ok(owner) = self.shared.owner(&datagram.plugin, Principal::Node) else {
            return;
        };
        let most = owner.strangers();
        let post = self.shared.post(&owner);
        let task = Task::Datagram(Arc::new(datagram));
        if !post.is_ok_and(|post| post.offer(task, most).is_ok()) {
            owner.loaded.figures.dropped();
        }
    }
}

impl Owner {
    /// What may wait of what anybody can send: the rest is for who asks.
    fn strangers(&self) -> u32 {
        let waiting = self.loaded.edition().manifest.limits.waiting;
        waiting.div_ceil(STRANGERS_PART)
    }
}

/// What a word of `sockets` says of a port to listen at.
fn door(word: &str) -> Option<(SocketKind, u16)> {
    let kinds = [SocketKind::Tcp, SocketKind::Tls];
    let (_, port) = word.split_once(':')?;
    let port = port.parse().ok()?;
    let kind = kinds.into_iter().find(|kind| kind.door(port) == word)?;
    Some((kind, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_told_from_a_port_of_others() {
        assert_eq!(door("tcp-listen:6667"), Some((SocketKind::Tcp, 6667)));
        assert_eq!(door("tls-listen:1"), Some((SocketKind::Tls, 1)));
        assert_eq!(door("tcp:6667"), None);
        assert_eq!(door("tcp-listen:06667"), None);
    }
}
