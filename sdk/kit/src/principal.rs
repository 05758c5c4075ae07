//! One principal at one node: what it remembers, and what waits for it.

use std::collections::{BTreeMap, VecDeque};

use wormholes_plugin::{Context, Plugin, Reason, Reply, Result};

use crate::{
    event::Event,
    memory::{Memory, Version},
};

pub(crate) struct Actor<P> {
    pub(crate) memory: Memory,
    /// With the events that it ran.
    pub(crate) instance: Option<(P, u32)>,
    /// With how often each was tried.
    pub(crate) waiting: VecDeque<(Event, u32)>,
    /// When those who ask leave, by request.
    pub(crate) deadlines: BTreeMap<u64, u64>,
    pub(crate) next_event: u64,
    /// Why no event runs.
    pub(crate) parked: Option<String>,
}

impl<P> Actor<P> {
    /// Begins with its wake-up.
    pub(crate) fn new(memory: Memory, version: Version, first_event: u64) -> Self {
        let mut waiting = VecDeque::new();
        let reason = match memory.woken_by {
            None => Reason::Created,
            Some(by) if by == version => Reason::Started,
            Some(by) => {
                if by.schema != version.schema {
                    waiting.push_back((Event::Migrate { from: by.schema }, 0));
                }
                Reason::Updated
            }
        };
        waiting.push_back((Event::Init(reason), 0));
        Self {
            memory,
            instance: None,
            waiting,
            deadlines: BTreeMap::new(),
            next_event: first_event,
            parked: None,
        }
    }

    /// When it next has something to do by itself.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let timer = self.memory.next_timer().map(|(due_ms, _)| due_ms);
        let timer = timer.filter(|_| self.parked.is_none());
        let deadline = self.deadlines.values().min().copied();
        timer.into_iter().chain(deadline).min()
    }

    /// The requests whose time is over.
    pub(crate) fn late(&self, now_ms: u64) -> Vec<u64> {
        let deadlines = self.deadlines.iter();
        let late = deadlines.filter(|(_, deadline)| **deadline <= now_ms);
        late.map(|(request, _)| *request).collect()
    }

    /// The timer that is due.
    pub(crate) fn due_timer(&self, now_ms: u64) -> Option<Event> {
        let (due_ms, name) = self.memory.next_timer()?;
        let name = name.to_owned();
        let payload = self.memory.timers.get(&name)?.payload.clone();
        (due_ms <= now_ms).then_some(Event::Timer { name, payload })
    }
}

/// Has the plugin handle an event; what it replies, if that is a request.
pub(crate) fn call<P: Plugin>(
    plugin: &mut P,
    cx: &mut Context,
    event: &Event,
) -> Result<Option<Reply>> {
    match event {
        Event::Migrate { from } => plugin.migrate(cx, *from)?,
        Event::Init(reason) => plugin.init(cx, *reason)?,
        Event::Timer { name, payload } => plugin.timer(cx, name, payload)?,
        Event::Request(request) => return plugin.request(cx, request.clone()).map(Some),
        Event::Canceled(request) => plugin.canceled(cx, *request)?,
    }
    Ok(None)
}
