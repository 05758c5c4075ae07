//! What is on its way between nodes, and what becomes of it there.

mod asked;
mod flights;
mod links;
mod tours;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use wormholes_plugin::{
    Algorithm, Connect, Error, ErrorCode, Fetch, HttpResponse, Letter, Principal, Result,
};

pub(crate) use self::links::{Links, millis};
use self::{
    asked::Asked,
    flights::Flights,
    tours::{Tour, Tours},
};
use crate::{
    due::{Due, Marks},
    faults::Leave,
    fetches::FetchId,
    keys::Secret,
    mail::{Delivery, InKey, OutKey},
    random::Random,
};

/// The place of who is no node.
pub(crate) const OUTSIDE: usize = usize::MAX;
/// That a node is gone is noticed after this: a node's connection is lost that is silent for so long,
/// and none of its calls takes longer.
pub(crate) const GONE_MS: u64 = 15_000;
/// After its trunk broke, a durable message goes again from then on, and up to twice that later.
const PAUSE_MS: u64 = 500;

/// A channel: whose at which node, and which.
pub(crate) type ChannelId = (usize, Principal, OutKey);

/// What leaves a node when an event is real.
#[derive(Debug, Clone)]
pub(crate) enum Parcel {
    /// A post, or a question with its id and its deadline.
    Letter {
        of: Principal,
        letter: Letter,
        ask: Option<(u64, u64)>,
    },
    /// A durable message was handled, or never will be.
    Handled { trip: Trip },
    Answer {
        asker: Asker,
        answer: Result<Vec<u8>>,
    },
    /// A request by HTTP.
    Fetch {
        of: Principal,
        id: u64,
        wanted: Fetch,
    },
    /// Something for a connection.
    Socket {
        of: Principal,
        id: u64,
        order: Order,
    },
    /// A datagram from a port of the plugin's own.
    Datagram {
        port: u16,
        to: SocketAddr,
        data: Vec<u8>,
    },
}

/// What a principal wants of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Connect(Connect),
    Credit(u32),
    Write(Vec<u8>),
    Close,
}

/// One journey of a durable message.
#[derive(Debug, Clone)]
pub(crate) struct Trip {
    pub(crate) number: u64,
    pub(crate) channel: ChannelId,
}

/// Who waits for the answer to a question.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) node: usize,
    /// How often that node had started: what it asked before is not waited for after.
    pub(crate) boot: u64,
    pub(crate) principal: Principal,
    pub(crate) id: u64,
}

/// A principal that is known as an alias.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) node: usize,
    pub(crate) principal: Principal,
    pub(crate) name: Arc<str>,
}

/// Something on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) due_ms: u64,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Message {
        to: Principal,
        key: InKey,
        content: std::result::Result<Vec<u8>, u64>,
        delivery: Delivery,
        trip: Trip,
    },
    Handled(Trip),
    Letter {
        to: Principal,
        key: InKey,
        body: Vec<u8>,
        ask: Option<(Asker, u64)>,
    },
    Answer {
        asker: Asker,
        answer: Result<Vec<u8>>,
    },
    Fetched {
        asker: Asker,
        answer: Result<HttpResponse>,
    },
}

/// All that is between nodes.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) ids: Vec<[u8; 32]>,
    numbers: BTreeMap<[u8; 32], usize>,
    pub(crate) marks: Marks,
    pub(crate) flights: Flights,
    /// What leaves each node next.
    pub(crate) parcels: BTreeMap<usize, VecDeque<Parcel>>,
    /// Who is connected to a node under an alias.
    pub(crate) guests: BTreeMap<(usize, [u8; 32]), Guest>,
    pub(crate) asked: Asked,
    tours: Tours,
    /// When blobs come that set out.
    pub(crate) fetches: BTreeMap<FetchId, u64>,
    cut: BTreeSet<(usize, usize)>,
    last_trip: u64,
    pub(crate) links: Links,
    /// Of a hundred, so many break their trunk.
    pub(crate) breaks_percent: u8,
    /// Of a hundred letters and answers, so many are lost.
    pub(crate) loses_percent: u8,
}

impl Net {
    /// A node is there; gives its number.
    pub(crate) fn join(&mut self, id: [u8; 32]) -> usize {
        let number = self.ids.len();
        self.ids.push(id);
        self.numbers.entry(id).or_insert(number);
        number
    }

    /// The number of a node.
    pub(crate) fn number(&self, id: &[u8; 32]) -> Option<usize> {
        self.numbers.get(id).copied()
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize, now_ms: u64) {
        if a != b {
            self.cut.insert((a.min(b), a.max(b)));
            self.guests
                .retain(|(at, _), guest| ![(a, b), (b, a)].contains(&(*at, guest.node)));
            self.break_off(Some(a), b, now_ms);
            self.break_off(Some(b), a, now_ms);
        }
    }

    pub(crate) fn heal(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    /// A node ended: what left it goes on, what was on its way to it does not. Who has to know hears of
    /// it then.
    pub(crate) fn ended(&mut self, node: usize, heard_ms: u64) {
        // Whoever is beyond the nodes answers nobody who was there before.
        let is_fetched = |flight: &Flight| matches!(flight.what, What::Fetched { .. });
        self.flights.take_to(node, is_fetched);

        for parcel in self.parcels.remove(&node).into_iter().flatten() {
            if let Parcel::Answer { asker, answer } = parcel {
                self.bounce(What::Answer { asker, answer }, heard_ms);
            }
        }
        self.guests
            .retain(|(at, _), guest| *at != node && guest.node != node);
        self.tours.forget_from(node);
        let its = (node, Principal::Node, 0)..(node + 1, Principal::Node, 0);
        let its: Vec<_> = self.fetches.range(its).map(|(id, _)| id.clone()).collect();
        for fetch in its {
            self.fetches.remove(&fetch);
        }
        self.break_off(None, node, heard_ms);
    }

    /// The trunks to a node break, or the one from a certain node.
    fn break_off(&mut self, from: Option<usize>, to: usize, heard_ms: u64) {
        let is_gone = |node: usize| from.is_none_or(|from| from == node);
        for channel in self.tours.to(to) {
            if is_gone(channel.0)
                && let Some(tour) = self.tours.get_mut(&channel)
            {
                tour.is_away = false;
                self.marks.add(Due::Channel(Box::new(channel)));
            }
        }
        for flight in self.flights.take_to(to, |flight| is_gone(flight.from)) {
            self.bounce(flight.what, heard_ms);
        }
    }

    /// The trunk of what was lost: who asked is told, a durable message goes again.
    fn bounce(&mut self, what: What, heard_ms: u64) {
        let asker = match what {
            What::Letter {
                ask: Some((asker, _)),
                ..
            }
            | What::Answer { asker, .. } => asker,
            What::Message { trip, .. } | What::Handled(trip) => return self.back(&trip),
            What::Letter { ask: None, .. } => return,
            What::Fetched { asker, .. } => {
                let broke = Error::new(ErrorCode::Unavailable, "the flow broke");
                return self.tell_fetched(asker, Err(broke), heard_ms);
            }
        };
        let broke = "the trunk to the other node broke";
        let broke = Error::new(ErrorCode::Unavailable, broke);
        self.tell(asker, Err(broke), heard_ms);
    }

    /// Tells who asked, then; nothing of it travels.
    pub(crate) fn tell(&mut self, asker: Asker, answer: Result<Vec<u8>>, due_ms: u64) {
        let node = asker.node;
        self.put(Flight {
            due_ms,
            from: node,
            to: node,
            what: What::Answer { asker, answer },
        });
    }

    /// Tells who made a request by HTTP.
    pub(crate) fn tell_fetched(&mut self, asker: Asker, answer: Result<HttpResponse>, due_ms: u64) {
        let node = asker.node;
        self.put(Flight {
            due_ms,
            from: node,
            to: node,
            what: What::Fetched { asker, answer },
        });
    }

    fn put(&mut self, flight: Flight) {
        let number = self.flights.put(flight);
        self.marks.add(Due::Flight(number));
    }

    /// Has something travel. What breaks its trunk is lost, or arrives all the same.
    pub(crate) fn launch(
        &mut self,
        (from, to): (usize, usize),
        what: What,
        fault: Leave,
        (now_ms, random): (u64, &mut Random),
    ) {
        let is_far = from != to;
        if is_far && self.loses(&what, random) {
            return;
        }
        let delay = self.links.delay_ms((from, to), random);
        let breaks = is_far && self.breaks(random);
        let arrives = !breaks || random.of(0..2) == 0;
        let is_lost = fault == Leave::Lost || !arrives || self.is_cut(from, to);
        if fault == Leave::Never || is_far && is_lost {
            return self.bounce(what, now_ms);
        }
        if breaks && let What::Message { trip, .. } | What::Handled(trip) = &what {
            self.back(&trip.clone());
        }
        self.put(Flight {
            due_ms: now_ms + delay,
            from,
            to,
            what,
        });
    }

    /// Whether a trunk breaks under what travels.
    pub(crate) fn breaks(&self, random: &mut Random) -> bool {
        random.of(0..100) < u64::from(self.breaks_percent)
    }

    /// Whether it is lost without a word.
    fn loses(&self, what: &What, random: &mut Random) -> bool {
        match what {
            What::Letter { .. } | What::Answer { .. } => {
                random.of(0..100) < u64::from(self.loses_percent)
            }
            What::Message { .. } | What::Handled(_) | What::Fetched { .. } => false,
        }
    }

    /// A channel's message sets out.
    pub(crate) fn set_out(&mut self, channel: &ChannelId, to: usize, not_before_ms: u64) -> Trip {
        self.last_trip += 1;
        let tour = Tour {
            to,
            trip: self.last_trip,
            is_away: true,
            not_before_ms,
        };
        self.tours.put(channel, tour);
        Trip {
            number: self.last_trip,
            channel: channel.clone(),
        }
    }

    /// The channel's receiver cannot be reached now.
    pub(crate) fn wait(&mut self, channel: &ChannelId, to: usize, not_before_ms: u64) {
        let trip = self.set_out(channel, to, not_before_ms);
        self.back(&trip);
    }

    pub(crate) fn pause(random: &mut Random) -> u64 {
        PAUSE_MS + random.of(0..PAUSE_MS)
    }

    fn back(&mut self, trip: &Trip) {
        if let Some(tour) = self.tours.get_mut(&trip.channel)
            && tour.trip == trip.number
        {
            tour.is_away = false;
            let channel = Box::new(trip.channel.clone());
            self.marks.add(Due::Channel(channel));
        }
    }

    /// It is known what became of it: the next one may set out at once.
    pub(crate) fn done(&mut self, trip: &Trip) {
        if let Some(tour) = self.tours.get_mut(&trip.channel)
            && tour.trip == trip.number
        {
            (tour.is_away, tour.not_before_ms) = (false, 0);
            let channel = Box::new(trip.channel.clone());
            self.marks.add(Due::Channel(channel));
        }
    }

    /// Whether nothing newer set out.
    pub(crate) fn is_newest(&self, trip: &Trip) -> bool {
        let tour = self.tours.get(&trip.channel);
        tour.is_none_or(|tour| tour.trip == trip.number)
    }

    /// When the channel's next message may set out; `None`: one is away.
    pub(crate) fn ready_ms(&self, channel: &ChannelId) -> Option<u64> {
        match self.tours.get(channel) {
            Some(tour) if tour.is_away => None,
            Some(tour) => Some(tour.not_before_ms),
            None => Some(0),
        }
    }
}

/// An alias: the same for as long as the node has its id.
pub(crate) fn alias(node: &[u8; 32], principal: &Principal, name: &str) -> Secret {
    Secret::derived(node, ("alias", principal, name), Algorithm::Ed25519)
}

/// The key of an alias.
pub(crate) fn alias_key(node: &[u8; 32], principal: &Principal, name: &str) -> [u8; 32] {
    let public = alias(node, principal, name).public().ok();
    public
        .and_then(|key| key.try_into().ok())
        .unwrap_or_default()
}
