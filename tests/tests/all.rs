//! The one integration binary: a plain list of what is in it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test ends by panicking"
)]

#[path = "all/attrition.rs"]
mod attrition;
#[path = "all/bad_input.rs"]
mod bad_input;
#[path = "all/banned.rs"]
mod banned;
#[path = "all/blob_fetches.rs"]
mod blob_fetches;
#[path = "all/blobs.rs"]
mod blobs;
#[path = "all/bugreport.rs"]
mod bugreport;
#[path = "all/carriers.rs"]
mod carriers;
#[path = "all/censor.rs"]
mod censor;
#[path = "all/cli.rs"]
mod cli;
#[path = "all/clients.rs"]
mod clients;
#[path = "all/completions.rs"]
mod completions;
#[path = "all/cookbook.rs"]
mod cookbook;
#[path = "all/corpus.rs"]
mod corpus;
#[path = "all/daemon.rs"]
mod daemon;
#[path = "all/dashboard.rs"]
mod dashboard;
#[path = "all/demo.rs"]
mod demo;
#[path = "all/disk_failures.rs"]
mod disk_failures;
#[path = "all/doors.rs"]
mod doors;
#[path = "all/embed.rs"]
mod embed;
#[path = "all/endurance.rs"]
mod endurance;
#[path = "all/error_codes.rs"]
mod error_codes;
#[path = "all/escapes.rs"]
mod escapes;
#[path = "all/facts.rs"]
mod facts;
#[path = "all/features.rs"]
mod features;
#[path = "all/fetches.rs"]
mod fetches;
#[path = "all/gateway.rs"]
mod gateway;
#[path = "all/hooks.rs"]
mod hooks;
#[path = "all/hostile_scripts.rs"]
mod hostile_scripts;
#[path = "all/i2p.rs"]
mod i2p;
#[path = "all/kills.rs"]
mod kills;
#[path = "all/kit.rs"]
mod kit;
#[path = "all/kit_ledgers.rs"]
mod kit_ledgers;
#[path = "all/kit_limits.rs"]
mod kit_limits;
#[path = "all/kit_networks.rs"]
mod kit_networks;
#[path = "all/leaks.rs"]
mod leaks;
#[path = "all/ledgers.rs"]
mod ledgers;
#[path = "all/lies.rs"]
mod lies;
#[path = "all/long_fetch.rs"]
mod long_fetch;
#[path = "all/loops.rs"]
mod loops;
#[path = "all/marks.rs"]
mod marks;
#[path = "all/messages.rs"]
mod messages;
#[path = "all/moved_flows.rs"]
mod moved_flows;
#[path = "all/moves.rs"]
mod moves;
#[path = "all/networks.rs"]
mod networks;
#[path = "all/next_hops.rs"]
mod next_hops;
#[path = "all/no_route.rs"]
mod no_route;
#[path = "all/onion_build.rs"]
mod onion_build;
#[path = "all/operations.rs"]
mod operations;
#[path = "all/operator.rs"]
mod operator;
#[path = "all/package.rs"]
mod package;
#[path = "all/peers.rs"]
mod peers;
#[path = "all/plans.rs"]
mod plans;
#[path = "all/plugins.rs"]
mod plugins;
#[path = "all/plugins_js.rs"]
mod plugins_js;
#[path = "all/plugins_new.rs"]
mod plugins_new;
#[path = "all/plugins_operators.rs"]
mod plugins_operators;
#[path = "all/plugins_paced.rs"]
mod plugins_paced;
#[path = "all/plugins_removed.rs"]
mod plugins_removed;
#[path = "all/plugins_run.rs"]
mod plugins_run;
#[path = "all/plugins_update.rs"]
mod plugins_update;
#[path = "all/porters.rs"]
mod porters;
#[path = "all/punch.rs"]
mod punch;
#[path = "all/readme.rs"]
mod readme;
#[path = "all/recordings.rs"]
mod recordings;
#[path = "all/relay_open.rs"]
mod relay_open;
#[path = "all/reloads.rs"]
mod reloads;
#[path = "all/replay.rs"]
mod replay;
#[path = "all/scenario_onion.rs"]
mod scenario_onion;
#[path = "all/scenario_records.rs"]
mod scenario_records;
#[path = "all/scenario_rendezvous.rs"]
mod scenario_rendezvous;
#[path = "all/scenario_sealed.rs"]
mod scenario_sealed;
#[path = "all/secrets.rs"]
mod secrets;
#[path = "all/service_manager.rs"]
mod service_manager;
#[path = "all/sim.rs"]
mod sim;
#[path = "all/sni.rs"]
mod sni;
#[path = "all/sockets.rs"]
mod sockets;
#[path = "all/telemetry.rs"]
mod telemetry;
#[path = "all/tidy.rs"]
mod tidy;
#[path = "all/tidy_text.rs"]
mod tidy_text;
#[path = "all/timing.rs"]
mod timing;
#[path = "all/tor_failures.rs"]
mod tor_failures;
#[path = "all/tor_flows.rs"]
mod tor_flows;
#[path = "all/tor_onions.rs"]
mod tor_onions;
#[path = "all/tor_peers.rs"]
mod tor_peers;
#[path = "all/udp.rs"]
mod udp;
#[path = "all/users.rs"]
mod users;
#[path = "all/watched.rs"]
mod watched;
#[path = "all/wicked_plugins.rs"]
mod wicked_plugins;
