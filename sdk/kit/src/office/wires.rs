//! What leaves a node for the world beyond the nodes: requests by HTTP, what is for connections, and
//! datagrams.

use std::net::SocketAddr;

use wormholes_plugin::{Error, ErrorCode, Fetch, Plugin, Principal};

use crate::{
    faults::Leave,
    net::{Asker, OUTSIDE, Order},
    world::World,
};

impl<P: Plugin> World<P> {
    /// A request by HTTP leaves a node, and is answered after a while.
    pub(super) fn fetch(&mut self, from: usize, principal: Principal, id: u64, wanted: &Fetch) {
        let fault = self.around.faults.borrow_mut().leave();
        let Some(node) = self.nodes.get_mut(from) else {
            return;
        };
        let asker = Asker {
            node: from,
            boot: node.boot,
            principal,
            id,
        };
        // The server may have heard of it, whatever comes of the answer.
        let answer = match fault {
            Leave::Never => Err(Error::new(ErrorCode::Unavailable, "the flow broke")),
            Leave::Done | Leave::Last | Leave::Lost => node.fetched(wanted),
        };
        if fault != Leave::Lost {
            let links = &self.around.net.links;
            let delay_ms = links.delay_ms((from, OUTSIDE), &mut self.around.random);
            let due_ms = self.around.now_ms + delay_ms;
            self.around.net.tell_fetched(asker, answer, due_ms);
        }
        self.crash_if(from, fault);
    }

    /// A principal wants something of a connection.
    pub(super) fn order(&mut self, from: usize, of: &Principal, id: u64, order: Order) {
        let fault = self.around.faults.borrow_mut().leave();
        if let Some(node) = self.nodes.get_mut(from)
            && fault != Leave::Never
        {
            node.order(of, id, order);
            if fault == Leave::Lost {
                node.break_line(of, id);
            }
            node.drain(of, &mut self.around);
        }
        self.crash_if(from, fault);
    }

    /// A datagram leaves a node.
    pub(super) fn cast(&mut self, from: usize, datagram: (u16, SocketAddr, Vec<u8>)) {
        let fault = self.around.faults.borrow_mut().leave();
        let node = self.nodes.get_mut(from);
        if let (Some(node), Leave::Done | Leave::Last) = (node, fault) {
            node.web.cast.push(datagram);
        }
        self.crash_if(from, fault);
    }

    pub(super) fn crash_if(&mut self, from: usize, fault: Leave) {
        if matches!(fault, Leave::Never | Leave::Last)
            && let Some(node) = self.nodes.get_mut(from)
        {
            node.start(&mut self.around);
        }
    }
}
