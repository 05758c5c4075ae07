//! One thing that this node does for others, within the limits of config.toml: who is being
//! served, how much each had today, and how fast.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use wormholes_proto::{NodeId, Reason};
use wormholes_rules::Allowance;

use crate::{
    clock::unix_seconds,
    config::RoleConfig,
    counters::RoleCounters,
    pipe::{CopyLimits, FlowBytes, Pace},
};

/// Nodes whose use is remembered. Overflow rule: those that are not being served are forgotten,
/// the least used first.
const MAX_ACCOUNTS: usize = 4096;
const SECONDS_A_DAY: u64 = 86_400;

/// A role with its limits and its accounts.
#[derive(Debug)]
pub(crate) struct Role {
    config: RoleConfig,
    accounts: Mutex<Accounts>,
}

/// Whose account is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Customer {
    /// The node that asks, or the one that passes on what others want.
    pub(crate) node: NodeId,
    /// A hop passes on what comes in onions: it is not the node's own and shall not use its share
    /// up, and many clients share what it gets.
    pub(crate) passes_on: bool,
}

/// What one customer had.
#[derive(Debug, Default)]
struct Account {
    active: usize,
    pace: Option<Arc<Pace>>,
    day: u64,
    bytes_today: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Accounts {
    active: usize,
    by_customer: HashMap<Customer, Account>,
}

/// A place in a role; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    role: &'a Role,
    counters: &'a RoleCounters,
    customer: Customer,
    pace: Option<Arc<Pace>>,
    /// What the flow in this place moved.
    pub(crate) bytes: Arc<FlowBytes>,
}

/// What a role does now, for the control socket.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RoleStatus {
    /// Whether config.toml turns it on.
    pub enabled: bool,
    /// Being served.
    pub active: usize,
    /// At once, in all.
    pub max_active: usize,
    /// Served since the start.
    pub opened: u64,
    /// Bytes carried since the start, both directions.
    pub bytes: u64,
    /// Refusals by reason.
    pub refused: Vec<(String, u64)>,
    /// By node, those with the most bytes today first.
    pub nodes: Vec<RoleAccount>,
}

/// What one node had of a role.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RoleAccount {
    /// Who.
    pub id: NodeId,
    /// Being served.
    pub active: usize,
    /// Bytes since midnight UTC, both directions.
    pub bytes_today: u64,
}

impl RoleConfig {
    /// Places that one node may have at once, if it passes on what others want. A hop's own hops
    /// limit their clients, each by itself; half of all is left to others.
    pub(crate) fn max_circuits_of_one(&self) -> usize {
        self.max_circuits_per_peer.max(self.max_circuits / 2)
    }
}

impl Role {
    pub(crate) fn new(config: RoleConfig) -> Self {
        Self {
            config,
            accounts: Mutex::default(),
        }
    }

    /// Takes a place for `customer`.
    ///
    /// # Errors
    /// [`Reason::Unsupported`] when the role is off, [`Reason::Busy`] at a limit.
    pub(crate) fn enter<'a>(
        &'a self,
        counters: &'a RoleCounters,
        customer: impl Into<Customer>,
    ) -> Result<Place<'a>, Reason> {
        let customer = customer.into();
        if !self.config.enabled {
            return Err(Reason::Unsupported);
        }
        let mut accounts = self.accounts();
        if accounts.active >= self.config.max_circuits {
            return Err(Reason::Busy);
        }
        accounts.make_room();
        let account = accounts.by_customer.entry(customer).or_default();
        if account.active >= self.max_circuits(customer) {
            return Err(Reason::Busy);
        }
        account.active += 1;
        account.turn_day(today());
        let rate = self.config.bytes_per_second_per_peer;
        if rate > 0 && account.pace.is_none() {
            account.pace = Some(Arc::new(Pace::new(rate)));
        }
        let sums = vec![
            Arc::clone(&account.bytes_today),
            Arc::clone(&counters.bytes),
        ];
        let pace = account.pace.clone();
        accounts.active += 1;
        counters.active.fetch_add(1, Relaxed);
        counters.opened.fetch_add(1, Relaxed);
        Ok(Place {
            role: self,
            counters,
            customer,
            pace,
            bytes: Arc::new(FlowBytes::part_of(sums)),
        })
    }

    /// Places that `customer` may have at once.
    fn max_circuits(&self, customer: Customer) -> usize {
        match customer.passes_on {
            true => self.config.max_circuits_of_one(),
            false => self.config.max_circuits_per_peer,
        }
    }

    /// Bytes that `customer` had since midnight UTC.
    pub(crate) fn bytes_today(&self, customer: impl Into<Customer>) -> u64 {
        let accounts = self.accounts();
        let account = accounts
            .by_customer
            .get(&customer.into())
            .filter(|account| account.day == today());
        account.map_or(0, |account| account.bytes_today.load(Relaxed))
    }

    /// How full it is, 255 being full; 0 when it is off.
    pub(crate) fn load(&self, counters: &RoleCounters) -> u8 {
        if !self.config.enabled {
            return 0;
        }
        let active = counters.active.load(Relaxed).saturating_mul(u8::MAX.into());
        let load = active.div_ceil(self.config.max_circuits.max(1));
        u8::try_from(load).unwrap_or(u8::MAX)
    }

    /// What it does now.
    pub(crate) fn status(&self, counters: &RoleCounters) -> RoleStatus {
        let mut by_node: HashMap<NodeId, RoleAccount> = HashMap::new();
        for (customer, account) in &self.accounts().by_customer {
            let id = customer.node;
            let node = by_node.entry(id).or_insert_with(|| RoleAccount::new(id));
            node.active += account.active;
            node.bytes_today += account.bytes_today.load(Relaxed);
        }
        let mut nodes: Vec<RoleAccount> = by_node.into_values().collect();
        nodes.sort_by_key(|account| (std::cmp::Reverse(account.bytes_today), account.id));
        RoleStatus {
            enabled: self.config.enabled,
            active: counters.active.load(Relaxed),
            max_active: self.config.max_circuits,
            opened: counters.opened.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            refused: counters
                .refused()
                .into_iter()
                .map(|(reason, count)| (reason.to_string(), count))
                .collect(),
            nodes,
        }
    }

    fn accounts(&self) -> std::sync::MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn make_room(&mut self) {
        if self.by_customer.len() < MAX_ACCOUNTS {
            return;
        }
        let idle = self
            .by_customer
            .iter()
            .filter(|(_, account)| account.active == 0);
        let least = idle.min_by_key(|(_, account)| account.bytes_today.load(Relaxed));
        if let Some(customer) = least.map(|(customer, _)| *customer) {
            self.by_customer.remove(&customer);
        }
    }
}

impl From<NodeId> for Customer {
    fn from(node: NodeId) -> Self {
        let passes_on = false;
        Self { node, passes_on }
    }
}

impl RoleAccount {
    fn new(id: NodeId) -> Self {
        Self {
            id,
            active: 0,
            bytes_today: 0,
        }
    }
}

impl Account {
    fn turn_day(&mut self, day: u64) {
        if self.day != day {
            self.day = day;
            self.bytes_today.store(0, Relaxed);
        }
    }
}

impl Place<'_> {
    /// Counts a question and its answer as bytes, and waits as the node's own speed wants.
    pub(crate) async fn pass(&self, question_bytes: usize, answer_bytes: usize) {
        let (up, down) = (question_bytes as u64, answer_bytes as u64);
        self.bytes.moved_up(up);
        self.bytes.moved_down(down);
        if let Some(pace) = &self.pace {
            pace.pass(up + down).await;
        }
    }

    /// Limits of a copy in this place: config.toml's and those of a rule's allowance.
    pub(crate) fn limits(&self, allowance: &Allowance) -> CopyLimits {
        let config = &self.role.config;
        let own = Allowance {
            max_bytes: Some(config.max_bytes_per_circuit).filter(|max| *max > 0),
            idle: Some(config.idle),
            ..Allowance::default()
        };
        let both = own.narrowed(allowance);
        CopyLimits {
            bandwidth_bytes_per_s: both.bandwidth_bytes_per_s,
            paces: self.pace.iter().cloned().collect(),
            max_bytes: both.max_bytes,
            max_time: both.max_time,
            idle: both.idle,
            ..CopyLimits::default()
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.counters.active.fetch_sub(1, Relaxed);
        let mut accounts = self.role.accounts();
        accounts.active = accounts.active.saturating_sub(1);
        if let Some(account) = accounts.by_customer.get_mut(&self.customer) {
            account.active = account.active.saturating_sub(1);
        }
    }
}

/// Days since 1970.
fn today() -> u64 {
    unix_seconds(SystemTime::now()) / SECONDS_A_DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(max_circuits: usize, max_circuits_per_peer: usize) -> Role {
        Role::new(RoleConfig {
            enabled: true,
            max_circuits,
            max_circuits_per_peer,
            ..RoleConfig::default()
        })
    }

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    #[test]
    fn places_are_limited_per_node_and_in_all() {
        let counters = RoleCounters::default();
        let role = role(3, 2);
        let first = role.enter(&counters, node(1)).unwrap();
        let _second = role.enter(&counters, node(1)).unwrap();
        assert_eq!(role.enter(&counters, node(1)).err(), Some(Reason::Busy));
        let _third = role.enter(&counters, node(2)).unwrap();
        assert_eq!(role.enter(&counters, node(3)).err(), Some(Reason::Busy));
        drop(first);
        let _fourth = role.enter(&counters, node(3)).unwrap();
        assert_eq!(role.status(&counters).active, 3);
    }

    #[test]
    fn the_load_is_the_share_of_places_that_are_taken() {
        let counters = RoleCounters::default();
        let role = role(2, 2);
        assert_eq!(role.load(&counters), 0);
        let first = role.enter(&counters, node(1)).unwrap();
        assert_eq!(role.load(&counters), 128);
        let _second = role.enter(&counters, node(1)).unwrap();
        assert_eq!(role.load(&counters), 255);
        drop(first);
        assert_eq!(role.load(&counters), 128);
        assert_eq!(Role::new(RoleConfig::default()).load(&counters), 0, "off");
    }

    #[test]
    fn bytes_are_summed_by_node() {
        let counters = RoleCounters::default();
        let role = role(3, 2);
        let place = role.enter(&counters, node(1)).unwrap();
        place.bytes.moved_up(5);
        assert_eq!(role.bytes_today(node(1)), 5, "while it moves");
        drop(place);
        let place = role.enter(&counters, node(1)).unwrap();
        place.bytes.moved_down(7);
        drop(place);
        assert_eq!(role.bytes_today(node(1)), 12);
        assert_eq!(role.bytes_today(node(2)), 0);
        assert_eq!(role.status(&counters).bytes, 12);
    }

    #[test]
    fn what_comes_in_onions_uses_up_nothing_of_the_hop_before() {
        let counters = RoleCounters::default();
        let role = role(3, 1);
        let onion = Customer {
            node: node(1),
            passes_on: true,
        };
        let passed_on = role.enter(&counters, onion).unwrap();
        passed_on.bytes.moved_up(5);
        let own = role.enter(&counters, node(1)).unwrap();
        own.bytes.moved_up(2);
        assert_eq!(role.bytes_today(onion), 5);
        assert_eq!(role.bytes_today(node(1)), 2);
        let nodes = role.status(&counters).nodes;
        assert_eq!(
            (nodes.len(), nodes[0].active, nodes[0].bytes_today),
            (1, 2, 7)
        );
    }

    #[test]
    fn clients_of_one_hop_share_half_of_all_places() {
        let counters = RoleCounters::default();
        let role = role(6, 1);
        let hop = Customer {
            node: node(1),
            passes_on: true,
        };
        let places: Vec<_> = (0..3).map(|_| role.enter(&counters, hop)).collect();
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(role.enter(&counters, hop).err(), Some(Reason::Busy));
        assert!(role.enter(&counters, node(2)).is_ok());
    }

    #[test]
    fn a_role_that_is_off_serves_nobody() {
        let role = Role::new(RoleConfig::default());
        let counters = RoleCounters::default();
        assert_eq!(
            role.enter(&counters, node(1)).err(),
            Some(Reason::Unsupported)
        );
    }

    #[test]
    fn the_least_used_account_makes_room() {
        let counters = RoleCounters::default();
        let role = role(MAX_ACCOUNTS * 2, 1);
        for number in 0..=MAX_ACCOUNTS {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            let place = role.enter(&counters, NodeId::from_bytes(bytes)).unwrap();
            place.bytes.moved_up(number as u64);
        }
        let status = role.status(&counters);
        assert_eq!(status.nodes.len(), MAX_ACCOUNTS);
        assert_eq!(
            status.nodes.last().map(|account| account.bytes_today),
            Some(1)
        );
    }
}
