//! Onion circuits over nodes that are honest, mistaken or hostile, without a network: every
//! message passes through the test, which sees and may change it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

#[path = "support/onion_net.rs"]
mod onion_net;

use std::{collections::BTreeSet, time::Duration};

use onion_net::{FIRST_DAY, Link, OnionNet, honest};
use rand_core::RngCore;
use wormholes_proto::{
    Reason, Suite,
    onion::{
        BuildError, CREATE_BYTES, CREATED_BYTES, CellError, CellSize, ClientBuild, CreateOutcome,
        DATA_OFFSET, LARGE_CELL, MAX_HOPS, MessageKind, SMALL_CELL, StartError,
    },
};

const SIZES: [CellSize; 2] = [CellSize::Small, CellSize::Large];

fn each_length_and_suite(check: impl Fn(usize, &[Suite])) {
    use Suite::{AesGcm, ChaChaPoly};
    for n_hops in 1..=MAX_HOPS {
        for suites in [&[AesGcm][..], &[ChaChaPoly], &[AesGcm, ChaChaPoly]] {
            check(n_hops, suites);
        }
    }
}

#[test]
fn messages_of_both_sizes_pass_both_ways_over_1_to_8_hops() {
    each_length_and_suite(|n_hops, suites| {
        let mut net = OnionNet::new(n_hops, suites, 1);
        let mut circuit = net.build(&mut honest).unwrap();
        for size in SIZES {
            for data in [&b""[..], b"x", &vec![7; size.max_data_bytes()]] {
                assert_eq!(circuit.send_down(size, data, &mut honest).unwrap(), data);
                assert_eq!(circuit.send_up(size, data, &mut honest).unwrap(), data);
            }
        }
        circuit.end_both().unwrap();
    });
}

#[test]
fn a_direction_goes_on_when_the_other_has_ended() {
    let mut net = OnionNet::new(3, &[Suite::AesGcm], 1);
    let mut circuit = net.build(&mut honest).unwrap();
    circuit.end_down().unwrap();
    let sent = circuit.send_up(CellSize::Small, b"still here", &mut honest);
    assert_eq!(sent.unwrap(), b"still here");
    let after_end = circuit.send_down(CellSize::Small, b"late", &mut honest);
    assert_eq!(after_end, Err(CellError));
}

#[test]
fn paths_of_no_or_nine_hops_are_refused() {
    let mut net = OnionNet::new(9, &[Suite::AesGcm], 1);
    for n_hops in [0, 9] {
        let path = &net.path()[..n_hops];
        let error = ClientBuild::new(path, &mut net.rng).err();
        assert_eq!(error, Some(StartError::Hops(n_hops)));
    }
}

/// Everything that passed over the links of a circuit, by link.
fn recorded_links(n_hops: usize, seed: u64) -> Vec<Vec<Vec<u8>>> {
    record_links(&mut OnionNet::new(n_hops, &Suite::ALL, seed))
}

fn record_links(net: &mut OnionNet) -> Vec<Vec<Vec<u8>>> {
    let mut links = vec![Vec::new(); net.path().len()];
    let mut record = |link: Link, bytes: &mut [u8]| links[link.hop()].push(bytes.to_vec());
    let mut circuit = net.build(&mut record).unwrap();
    for size in SIZES {
        circuit
            .send_down(size, b"GET secret.example", &mut record)
            .unwrap();
        circuit.send_up(size, b"the answer", &mut record).unwrap();
    }
    links
}

#[test]
fn sizes_are_equal_on_all_links_of_all_circuits() {
    for n_hops in 1..=MAX_HOPS {
        for link in recorded_links(n_hops, 1) {
            let sizes: Vec<usize> = link.iter().map(Vec::len).collect();
            // CREATE, CREATED, the greetings, then a small and a large cell each way.
            let expected = [
                CREATE_BYTES,
                CREATED_BYTES,
                SMALL_CELL,
                SMALL_CELL,
                SMALL_CELL,
                SMALL_CELL,
                LARGE_CELL,
                LARGE_CELL,
            ];
            assert_eq!(sizes, expected);
        }
    }
}

/// What two hops of one circuit see has no block in common, spare slots included, and no block
/// stands out by being empty or by coming again.
#[test]
fn no_block_comes_twice_on_any_link() {
    for n_hops in 1..=MAX_HOPS {
        let mut blocks = BTreeSet::new();
        for link in recorded_links(n_hops, 2) {
            for message in link {
                for block in message.chunks(16) {
                    assert_ne!(block, [0; 16]);
                    assert!(blocks.insert(block.to_vec()), "{n_hops} hops");
                }
            }
        }
    }
}

#[test]
fn a_hop_learns_its_neighbour_and_nothing_of_other_hops_or_the_target() {
    for n_hops in 1..=MAX_HOPS {
        let mut net = OnionNet::new(n_hops, &[Suite::AesGcm], 3);
        let links = record_links(&mut net);
        let path = net.path();
        for hop in 0..n_hops {
            let next = path.get(hop + 1);
            let told = net.told[hop];
            assert_eq!(told.map(|told| told.0), next.map(|next| next.id));
            assert_eq!(told.map(|told| told.1), next.map(|next| next.address));
            assert_eq!(told.map(|told| told.2), next.map(|next| next.key.key_id));

            // Its two links carry no other hop's name or key, and the target only inside.
            for message in links[hop..n_hops.min(hop + 2)].iter().flatten() {
                let shows = |needle: &[u8]| message.windows(needle.len()).any(|w| w == needle);
                for other in &path {
                    assert!(!shows(other.id.as_bytes()));
                    assert!(!shows(&other.key.key_id));
                    assert!(!shows(&other.key.public));
                }
                assert!(!shows(b"secret.example"));
                assert!(!shows(b"the answer"));
            }
        }
    }
}

#[test]
fn a_bit_flipped_anywhere_in_a_create_ends_the_build_at_the_next_hop() {
    for n_hops in [1, 2, 3, 8] {
        for hop in 0..n_hops {
            for slot in 0..MAX_HOPS {
                // X25519 ignores the top bit of byte 31: the handshake must not.
                for offset in [0, 31, 40, 159] {
                    let mut net = OnionNet::new(n_hops, &[Suite::ChaChaPoly], 4);
                    let mut flip = |link: Link, bytes: &mut [u8]| {
                        if link == Link::Create(hop) {
                            bytes[slot * 160 + offset] ^= 0x80;
                        }
                    };
                    let error = net.build(&mut flip).err();
                    let reason = Reason::Handshake;
                    assert_eq!(error, Some(BuildError { hop, reason }), "slot {slot}");
                }
            }
        }
    }
}

#[test]
fn a_bit_flipped_anywhere_in_a_created_ends_the_build() {
    for n_hops in [1, 2, 3, 8] {
        for hop in 0..n_hops {
            for slot in 0..MAX_HOPS {
                for offset in [0, 31, 33, 63] {
                    let mut net = OnionNet::new(n_hops, &[Suite::ChaChaPoly], 5);
                    let mut flip = |link: Link, bytes: &mut [u8]| {
                        if link == Link::Created(hop) {
                            bytes[slot * 64 + offset] ^= 0x80;
                        }
                    };
                    let error = net.build(&mut flip).err().map(|error| error.reason);
                    assert_eq!(error, Some(Reason::Handshake), "{n_hops} {hop} {slot}");
                }
            }
        }
    }
}

/// One flip at `at` on the link before `hop`; the circuit must end whatever the place.
fn check_cell_flip(n_hops: usize, suite: Suite, link: Link, at: usize) {
    let mut net = OnionNet::new(n_hops, &[suite], 6);
    let mut circuit = net.build(&mut honest).unwrap();
    let mut flip = |passing: Link, bytes: &mut [u8]| {
        if passing == link {
            bytes[at] ^= 0x80;
        }
    };
    let down = circuit.send_down(CellSize::Small, b"down", &mut flip);
    let up = circuit.send_up(CellSize::Small, b"up", &mut flip);
    // Broken once is closed for good.
    let again = if matches!(link, Link::Down(_)) {
        assert_eq!((down, up), (Err(CellError), Ok(b"up".to_vec())));
        circuit.send_down(CellSize::Small, b"down", &mut honest)
    } else {
        assert_eq!((down, up), (Ok(b"down".to_vec()), Err(CellError)));
        circuit.send_up(CellSize::Small, b"up", &mut honest)
    };
    assert_eq!(again, Err(CellError));
}

#[test]
fn a_bit_flipped_in_any_slot_at_any_layer_closes_the_circuit() {
    for n_hops in [1, 2, 3, 5, 8] {
        for hop in 0..n_hops {
            let suite = Suite::ALL[hop % 2];
            for place in (0..MAX_HOPS).map(|slot| slot * 16 + slot) {
                check_cell_flip(n_hops, suite, Link::Down(hop), place);
                check_cell_flip(n_hops, suite, Link::Up(hop), place);
            }
            for place in [128, 300, 511] {
                check_cell_flip(n_hops, suite, Link::Down(hop), place);
                check_cell_flip(n_hops, suite, Link::Up(hop), place);
            }
        }
    }
}

/// Two hostile hops around an honest one: the first marks, the second takes the mark off again.
#[test]
fn a_mark_does_not_survive_an_honest_hop() {
    for place in [0, 16, 35, 127, 128, 511] {
        for shift in [0, 16] {
            let mut net = OnionNet::new(3, &[Suite::AesGcm], 7);
            let mut circuit = net.build(&mut honest).unwrap();
            let mut mark = |link: Link, bytes: &mut [u8]| {
                if [Link::Down(1), Link::Up(2)].contains(&link) {
                    bytes[place] ^= 4;
                } else if link == Link::Down(2) && place >= shift {
                    bytes[place - shift] ^= 4;
                } else if link == Link::Up(0) && place + shift < SMALL_CELL {
                    bytes[place + shift] ^= 4;
                }
            };
            let up = circuit.send_up(CellSize::Small, b"up", &mut mark);
            let down = circuit.send_down(CellSize::Small, b"down", &mut mark);
            assert_eq!((down, up), (Err(CellError), Err(CellError)), "{place}");
        }
    }
}

#[test]
fn the_same_create_twice_is_dropped_at_every_hop() {
    let mut net = OnionNet::new(3, &[Suite::AesGcm], 8);
    let mut creates = Vec::new();
    let mut record = |link: Link, bytes: &mut [u8]| {
        if let Link::Create(hop) = link {
            creates.push((hop, bytes.to_vec()));
        }
    };
    net.build(&mut record).unwrap();
    let path = net.path();
    for (hop, slots) in creates {
        let key_id = path[hop].key.key_id;
        let outcome = net.handle_create(hop, key_id, &slots.try_into().unwrap());
        assert!(matches!(outcome, CreateOutcome::Drop));
    }
}

#[test]
fn a_cell_that_comes_twice_out_of_turn_or_not_at_all_closes_the_circuit() {
    let shuffles: [&[usize]; 4] = [&[0, 0], &[1, 0], &[1], &[0, 2]];
    for order in shuffles {
        let mut net = OnionNet::new(2, &[Suite::ChaChaPoly], 9);
        let mut circuit = net.build(&mut honest).unwrap();
        let mut cells: Vec<Vec<u8>> = (0..3).map(|_| circuit.seal_down(b"x")).collect();
        let down = order.iter().map(|at| {
            let mut cell = cells[*at].clone();
            circuit.hops[0].0.peel(&mut cell)
        });
        assert!(down.into_iter().any(|result| result == Err(CellError)));

        for cell in &mut cells {
            *cell = circuit.seal_up(b"x");
        }
        let up = order
            .iter()
            .map(|at| circuit.opener.open(&mut cells[*at].clone()).err());
        assert!(up.into_iter().any(|error| error == Some(CellError)));
    }
}

#[test]
fn a_cell_of_another_circuit_direction_or_layer_is_refused() {
    let mut net = OnionNet::new(2, &[Suite::AesGcm], 10);
    let mut one = net.build(&mut honest).unwrap();
    let mut two = net.build(&mut honest).unwrap();
    let mut cell = one.seal_down(b"x");
    assert_eq!(two.hops[0].0.peel(&mut cell.clone()), Err(CellError));
    assert_eq!(one.opener.open(&mut cell.clone()), Err(CellError));
    assert_eq!(one.last.0.open(&mut cell), Err(CellError));
}

#[test]
fn cells_of_other_sizes_are_refused() {
    for len in [0, 1, 127, 511, 513, 16383, 16385] {
        let mut net = OnionNet::new(2, &[Suite::AesGcm], 11);
        let mut circuit = net.build(&mut honest).unwrap();
        let mut cell = vec![0; len];
        let data = MessageKind::Data;
        assert_eq!(circuit.sealer.seal(data, 0, &mut cell), Err(CellError));
        assert_eq!(circuit.opener.open(&mut cell).err(), Some(CellError));
        let (down, up) = &mut circuit.hops[0];
        assert_eq!(down.peel(&mut cell), Err(CellError));
        assert_eq!(up.wrap(&mut cell), Err(CellError));
        let (down, up) = &mut circuit.last;
        assert_eq!(down.open(&mut cell).err(), Some(CellError));
        assert_eq!(up.seal(data, 0, &mut cell), Err(CellError));
    }
}

#[test]
fn data_that_a_cell_does_not_hold_are_refused() {
    for size in SIZES {
        let mut net = OnionNet::new(1, &[Suite::AesGcm], 11);
        let mut circuit = net.build(&mut honest).unwrap();
        let mut cell = vec![0; size.bytes()];
        let len = size.max_data_bytes() + 1;
        let result = circuit.sealer.seal(MessageKind::Data, len, &mut cell);
        assert_eq!(result, Err(CellError));
    }
}

#[test]
fn greetings_come_first_and_once_in_either_direction() {
    let mut net = OnionNet::new(1, &[Suite::AesGcm], 12);
    let mut circuit = net.build_without_greeting();
    let mut cell = vec![0; SMALL_CELL];
    let early = circuit.sealer.seal(MessageKind::Data, 0, &mut cell);
    assert_eq!(early, Err(CellError));
    let wrong = circuit.last.1.seal(MessageKind::Open, 0, &mut cell);
    assert_eq!(wrong, Err(CellError));
}

#[test]
fn a_stale_key_is_reported_from_any_hop() {
    for n_hops in [1, 3, 8] {
        for stale in 0..n_hops {
            let mut net = OnionNet::new(n_hops, &[Suite::AesGcm], 13);
            let mut path = net.path();
            path[stale].key.key_id = [9; 8];
            let error = net.build_on(&path, &mut honest).err();
            let expected = BuildError {
                hop: stale,
                reason: Reason::StaleKey,
            };
            assert_eq!(error, Some(expected), "{n_hops} hops");
        }
    }
}

#[test]
fn a_key_of_yesterday_is_good_for_an_hour() {
    let hours = |hours: u64| FIRST_DAY + Duration::from_secs(hours * 3600);
    let mut net = OnionNet::new(2, &[Suite::AesGcm, Suite::ChaChaPoly], 14);
    let yesterday = net.path();
    net.advance(hours(24));
    assert_ne!(net.path(), yesterday);
    net.build_on(&yesterday, &mut honest).unwrap();
    net.advance(hours(25));
    let error = net.build_on(&yesterday, &mut honest).err();
    assert_eq!(error.map(|error| error.reason), Some(Reason::StaleKey));
    net.build(&mut honest).unwrap();
}

#[test]
fn another_key_suite_or_node_than_the_layer_was_made_for_is_refused() {
    let check = |change: &dyn Fn(&mut OnionNet) -> Vec<_>| {
        let mut net = OnionNet::new(2, &[Suite::AesGcm], 15);
        let path = change(&mut net);
        let error = net.build_on(&path, &mut honest).err();
        assert_eq!(error.map(|error| error.reason), Some(Reason::Handshake));
    };
    check(&|net| {
        let mut path = net.path();
        path[1].key.public = path[0].key.public;
        path
    });
    check(&|net| {
        let mut path = net.path();
        path[1].key.suite = Suite::ChaChaPoly;
        path
    });
    check(&|net| {
        let mut path = net.path();
        path[0].id = path[1].id;
        path
    });
}

/// What a lying hop may do to the CREATED that it sends back.
#[test]
fn a_hop_that_lies_about_those_behind_it_is_found_out() {
    type Lie = fn(&mut [u8]);
    let lies: [(&str, Lie); 6] = [
        ("first two slots swapped", |created| {
            for at in 0..64 {
                created.swap(at, at + 64);
            }
        }),
        ("two spare slots swapped", |created| {
            for at in 320..384 {
                created.swap(at, at + 64);
            }
        }),
        ("a slot doubled", |created| {
            created.copy_within(64..128, 128)
        }),
        ("all behind zero", |created| created[64..].fill(0)),
        ("cut short and filled up", |created| {
            created[200..].fill(0x55)
        }),
        ("all of it invented", |created| created.fill(0xa7)),
    ];
    for n_hops in [2, 3, 8] {
        for liar in 0..n_hops {
            for (name, lie) in lies {
                let mut net = OnionNet::new(n_hops, &[Suite::AesGcm], 16);
                let mut tell = |link: Link, bytes: &mut [u8]| {
                    if link == Link::Created(liar) {
                        lie(bytes);
                    }
                };
                let error = net.build(&mut tell).err();
                let reason = error.map(|error| error.reason);
                assert_eq!(reason, Some(Reason::Handshake), "{name}, hop {liar}");
            }
        }
    }
}

#[test]
fn a_created_of_another_build_is_refused() {
    let mut net = OnionNet::new(3, &[Suite::AesGcm], 17);
    let mut old = Vec::new();
    let mut record = |link: Link, bytes: &mut [u8]| {
        if link == Link::Created(1) {
            old = bytes.to_vec();
        }
    };
    net.build(&mut record).unwrap();
    let mut replay = |link: Link, bytes: &mut [u8]| {
        if link == Link::Created(1) {
            bytes.copy_from_slice(&old);
        }
    };
    let error = net.build(&mut replay).err();
    let reason = error.map(|error| error.reason);
    assert_eq!(reason, Some(Reason::Handshake));
}

#[test]
fn a_failure_behind_a_hop_comes_back_with_its_reason_and_place() {
    for n_hops in [2, 3, 8] {
        for failing in 1..n_hops {
            for reason in [Reason::Unreachable, Reason::Busy, Reason::TimedOut] {
                let mut net = OnionNet::new(n_hops, &[Suite::ChaChaPoly], 18);
                net.refuse_at = Some((failing, reason));
                let error = net.build(&mut honest).err();
                let hop = failing;
                assert_eq!(error, Some(BuildError { hop, reason }));
            }
        }
    }
}

/// Size and fill of a CREATED are the same when a hop failed: only the client can tell.
#[test]
fn a_failure_looks_like_a_success_to_the_hops_before() {
    let mut net = OnionNet::new(4, &[Suite::AesGcm], 19);
    net.refuse_at = Some((2, Reason::Denied));
    let mut blocks = BTreeSet::new();
    let mut n_created = 0;
    let mut record = |link: Link, bytes: &mut [u8]| {
        if let Link::Created(_) = link {
            n_created += 1;
            assert_eq!(bytes.len(), CREATED_BYTES);
            assert!(bytes.chunks(16).all(|block| blocks.insert(block.to_vec())));
        }
    };
    assert!(net.build(&mut record).is_err());
    assert_eq!(n_created, 2);
}

#[test]
fn a_hop_that_is_its_own_neighbour_is_refused() {
    let mut net = OnionNet::new(2, &[Suite::AesGcm], 20);
    let mut path = net.path();
    path[1] = path[0];
    let error = net.build_on(&path, &mut honest).err();
    assert_eq!(error.map(|error| error.reason), Some(Reason::Handshake));
}

#[test]
fn random_bytes_build_nothing_and_open_nothing() {
    let mut net = OnionNet::new(2, &Suite::ALL, 25);
    let mut rng = net.rng.clone();
    for number in 0..200 {
        let mut slots = [0; CREATE_BYTES];
        rng.fill_bytes(&mut slots);
        let key_id = net.path()[number % 2].key.key_id;
        let outcome = net.handle_create(number % 2, key_id, &slots);
        assert!(matches!(outcome, CreateOutcome::Drop));
        let mut invent = |link: Link, bytes: &mut [u8]| {
            if link == Link::Created(number % 2) {
                rng.fill_bytes(bytes);
            }
        };
        assert!(net.build(&mut invent).is_err());
    }
    let mut circuit = net.build(&mut honest).unwrap();
    let mut cell = vec![0; SMALL_CELL];
    rng.fill_bytes(&mut cell);
    assert_eq!(circuit.hops[0].0.peel(&mut cell), Err(CellError));
    assert_eq!(circuit.opener.open(&mut cell), Err(CellError));
}

#[test]
fn seeds_decide_every_byte() {
    assert_eq!(recorded_links(3, 21), recorded_links(3, 21));
    assert_ne!(recorded_links(3, 21), recorded_links(3, 22));
}

/// Frozen: other builds speak these bytes.
#[test]
fn messages_keep_their_bytes() {
    use ring::digest::{SHA256, digest};
    let hex = data_encoding::HEXLOWER;
    let names = [
        "create",
        "created",
        "open",
        "answer",
        "small down",
        "small up",
        "large down",
        "large up",
    ];
    let mut text = String::new();
    for suite in Suite::ALL {
        let mut net = OnionNet::new(3, &[suite], 23);
        let links = record_links(&mut net);
        for (hop, link) in links.iter().enumerate() {
            for (name, bytes) in names.iter().zip(link) {
                // The first link in full, to debug with; of the others and of bulk the hash.
                let shown = if hop == 0 && bytes.len() < LARGE_CELL {
                    hex.encode(bytes)
                } else {
                    format!("sha256 {}", hex.encode(digest(&SHA256, bytes).as_ref()))
                };
                text += &format!("{suite}, link {hop}, {name}: {shown}\n");
            }
        }
    }
    assert_eq!(text, include_str!("onion_vectors.txt"), "\n{text}");
}

#[test]
fn data_begin_where_the_constant_says() {
    let mut net = OnionNet::new(2, &[Suite::AesGcm], 24);
    let mut circuit = net.build(&mut honest).unwrap();
    let mut cell = circuit.seal_down(b"here");
    circuit.hops[0].0.peel(&mut cell).unwrap();
    let delivered = circuit.last.0.open(&mut cell).unwrap();
    assert_eq!(delivered.data, DATA_OFFSET..DATA_OFFSET + 4);
    assert_eq!(&cell[delivered.data], b"here");
}
