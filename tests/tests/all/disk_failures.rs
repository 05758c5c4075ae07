//! Hosts whose disk fails: nothing of a commit is durable, or all of it though it failed, or the backend
//! panics. Who asked is told, and what is durable counts, whatever was said.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process,
    sync::Arc,
};

use anyhow::{Error, Result};
use rand::{Rng as _, seq::IndexedRandom as _};
use serde_json::{Value, json};
use wormholes_host::{Begun, Caller, Command, Host, Principal, Refusal};
use wormholes_tests::{
    Daemon, DiskFailure, FickleDisk, HostNetwork, LIMIT, PluginHost, RpcError, Setup, run,
    soak_rounds, until, until_within,
};

const FAILURES: [DiskFailure; 3] = [DiskFailure::Lost, DiskFailure::Kept, DiskFailure::Panic];

/// A host, alone, on a disk that can fail.
async fn on_disk(plugin: &str) -> (PluginHost, FickleDisk) {
    let disk = FickleDisk::default();
    let network = Arc::new(HostNetwork::default());
    let host = PluginHost::on_disk(&network, plugin, &disk).await;
    (host.unwrap(), disk)
}

fn host_of(host: &PluginHost) -> &Host {
    host.host().unwrap()
}

fn is_unsettled(error: &Error) -> bool {
    let refusal = error.downcast_ref::<Refusal>();
    refusal.is_some_and(Refusal::is_unsettled)
}

/// Waits until the node's principal looked at what is durable.
async fn until_awake(host: &PluginHost) {
    let marks = async || host.ask("marks", json!({})).await.ok();
    until("the principal to go on", marks).await.unwrap();
}

fn waiting(host: &PluginHost) -> u64 {
    host_of(host).instances()[0].waiting_messages
}

async fn until_waiting(host: &PluginHost, messages: u64) {
    let counted = async || (waiting(host) == messages).then_some(());
    until("the messages to be counted", counted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_told_that_the_disk_failed_and_principals_go_on_with_what_is_durable() {
    for failure in FAILURES {
        let (mut host, disk) = on_disk("tests/meter").await;
        host_of(&host).add_user("ann").await.unwrap();
        for user in [None, Some("ann")] {
            let count = host.ask_as(user, "write", json!({})).await.unwrap();
            assert_eq!(count, 1);
        }
        disk.break_down(failure);
        let told = host.ask("write", json!({})).await.unwrap_err();
        assert!(is_unsettled(&told), "{failure:?}: {told:#}");

        // Others wait, or are told as well; what was durable before can be asked for.
        let late = until("ann to be answered", async || {
            match host.ask_as(Some("ann"), "write", json!({})).await {
                Ok(count) => Some(count),
                Err(told) => {
                    assert!(is_unsettled(&told), "{failure:?}: {told:#}");
                    None
                }
            }
        });
        let mended = async {
            let tried = async || (disk.tries() >= 3).then_some(());
            until("the disk to be tried", tried).await.unwrap();
            assert_eq!(host.query("count").await.unwrap(), 1);
            disk.mend();
        };
        let (late, ()) = tokio::join!(late, mended);
        assert_eq!(late.unwrap(), 2, "{failure:?}");
        let counted = 1 + u64::from(failure == DiskFailure::Kept);
        let count = host.ask("write", json!({})).await.unwrap();
        assert_eq!(count, counted + 1, "{failure:?}");

        host.close().await.unwrap();
        host.open(None).await.unwrap();
        assert_eq!(host.query("count").await.unwrap(), counted + 1);
        let anns = host.query_as(Some("ann"), "count").await;
        assert_eq!(anns.unwrap(), 2);
        assert_eq!(disk.failed(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_read_are_read_again() {
    let (host, disk) = on_disk("tests/meter").await;
    assert_eq!(host.ask("write", json!({})).await.unwrap(), 1);
    disk.hide_rows();
    let told = host.ask("write", json!({})).await.unwrap_err();
    assert!(is_unsettled(&told), "{told:#}");
    assert_eq!(host.ask("write", json!({})).await.unwrap(), 2);
    assert_eq!((disk.failed(), disk.tries()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_fires_again_whose_event_was_lost() {
    let (host, disk) = on_disk("tests/wicked").await;
    for failure in FAILURES {
        let before = disk.failed();
        let marks = async || host.ask("marks", json!({})).await.ok();
        until("an alarm that goes off as the disk fails", async || {
            host.ask("mark", json!({ "with": 1 })).await.unwrap();
            // It is set by one commit, and goes off in the next one; a machine that is late has
            // both in one.
            disk.fail_after(1, failure);
            host.ask("alarm", json!({ "with": 7 })).await.unwrap();
            let over = until("the alarm to go off", async || {
                let rang = marks().await.is_some_and(|marks| marks[0] == 7);
                (rang || disk.failed() > before).then_some(())
            });
            over.await.unwrap();
            disk.mend();
            (disk.failed() > before).then_some(())
        })
        .await
        .unwrap();
        until("it to go off again, if it has to", async || {
            (marks().await?[0] == 7).then_some(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_listed_as_the_disk_has_it_after_it_failed() {
    let (host, disk) = on_disk("tests/wicked").await;
    for failure in FAILURES {
        let begin = async || -> Result<Begun, Refusal> {
            let command = Command::new(Caller::Operator, "for-ever", b"{}");
            let begun = host_of(&host).begin("wicked", Principal::Node, command, None);
            begun.await
        };
        let is_kept = failure == DiskFailure::Kept;
        let listed = || {
            let listed = host_of(&host).operations();
            let open = listed.iter().filter(|it| it.ended_unix_ms.is_none());
            let open = open.count();
            let counted = host_of(&host).instances()[0].open_operations;
            assert_eq!(open, counted);
            open
        };
        host.ask("mark", json!({ "with": 1 })).await.unwrap();
        disk.fail_after(0, failure);
        let told = begin().await.unwrap_err();
        assert!(told.is_unsettled(), "{failure:?}: {told}");
        until_awake(&host).await;
        assert_eq!(listed(), usize::from(is_kept), "{failure:?}");

        let Begun::Operation(begun) = begin().await.unwrap() else {
            panic!("it goes on for ever");
        };
        let finish = json!({ "with": begun.id, "bytes": 3 });
        disk.fail_after(0, failure);
        let told = host.ask("finish", finish.clone()).await.unwrap_err();
        assert!(is_unsettled(&told), "{failure:?}: {told:#}");
        until_awake(&host).await;
        assert_eq!(listed(), 1, "{failure:?}: the first one, or the second");
        if !is_kept {
            host.ask("finish", finish).await.unwrap();
        }
        let (_, outcome) = host_of(&host).operation(begun.id).unwrap();
        assert_eq!(outcome, Some(Ok(b"111".to_vec())), "{failure:?}");
        for left in host_of(&host).operations() {
            host_of(&host).cancel(left.id).await.unwrap();
        }
        assert_eq!(listed(), 0);
    }
}

async fn book(host: &PluginHost) -> Option<Value> {
    host.query("book").await.ok()
}

async fn pay(from: &PluginHost, to: &PluginHost, times: u64) -> Result<u64> {
    let arguments = json!({ "node": to.hex(), "amount": 1, "times": times });
    let paid = from.ask("pay", arguments).await?;
    Ok(paid.as_u64().unwrap())
}

/// What each has paid, when nothing is on its way any more and both books say the same.
async fn settled(hosts: [&PluginHost; 2]) -> [u64; 2] {
    let settled = until_within(LIMIT * 4, "both books to agree", async || {
        let books = [book(hosts[0]).await?, book(hosts[1]).await?];
        let mut counts = [0; 2];
        for from in [0, 1] {
            let to = 1 - from;
            let paid = &books[from]["peers"][hosts[to].hex()]["paid"];
            let received = &books[to]["peers"][hosts[from].hex()]["received"];
            assert_eq!(books[from]["refused"], 0, "{books:?}");
            counts[from] = books[from]["confirmed"].as_u64()?;
            let is_all = *paid == *received && paid["count"].as_u64()? == counts[from];
            is_all.then_some(())?;
        }
        (waiting(hosts[0]) == 0 && waiting(hosts[1]) == 0).then_some(counts)
    });
    settled.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_come_once_and_in_order_though_either_disk_fails_again_and_again() {
    let network = Arc::new(HostNetwork::default());
    let disks = [FickleDisk::default(), FickleDisk::default()];
    let ledger = async |disk| PluginHost::on_disk(&network, "plugins/ledger", disk).await;
    let hosts = [
        ledger(&disks[0]).await.unwrap(),
        ledger(&disks[1]).await.unwrap(),
    ];
    let (mut told, mut asked) = ([0; 2], [0; 2]);
    for _ in 0..soak_rounds(40) {
        let commits = rand::rng().random_range(0..8);
        let failure = FAILURES.choose(&mut rand::rng()).unwrap();
        disks[rand::rng().random_range(0..2)].fail_after(commits, *failure);
        for (from, times) in [(0, 1), (1, 7), (0, 40), (1, 3)] {
            asked[from] += times;
            match pay(&hosts[from], &hosts[1 - from], times).await {
                Ok(count) => told[from] = count,
                Err(error) => assert!(is_unsettled(&error), "{error:#}"),
            }
        }
    }
    disks.iter().for_each(FickleDisk::mend);
    // One more each way, so that neither has paid nothing.
    for from in [0, 1] {
        let paid = until("a payment that is answered", async || {
            asked[from] += 1;
            pay(&hosts[from], &hosts[1 - from], 1).await.ok()
        });
        told[from] = paid.await.unwrap();
    }
    let paid = settled([&hosts[0], &hosts[1]]).await;
    for from in [0, 1] {
        let within = told[from]..=asked[from];
        assert!(within.contains(&paid[from]), "{paid:?} of {within:?}");
        assert!(disks[from].failed() > 0, "it never failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_a_receiver_whose_disk_is_gone_and_their_sender_counts_them() {
    for failure in FAILURES {
        let network = Arc::new(HostNetwork::default());
        let disk = FickleDisk::default();
        let mut sender = PluginHost::new(&network, "plugins/ledger").await.unwrap();
        let receiver = PluginHost::on_disk(&network, "plugins/ledger", &disk);
        let receiver = receiver.await.unwrap();
        for host in [&sender, &receiver] {
            let other = if host.id() == sender.id() {
                &receiver
            } else {
                &sender
            };
            pay(host, other, 1).await.unwrap();
        }
        settled([&sender, &receiver]).await;

        disk.break_down(failure);
        pay(&sender, &receiver, 5).await.unwrap();
        until_waiting(&sender, 5).await;
        let tried = async || (disk.tries() >= 3).then_some(());
        until("the disk to be tried", tried).await.unwrap();
        assert_eq!(waiting(&sender), 5, "nobody confirms what is not durable");
        sender.close().await.unwrap();
        sender.open(None).await.unwrap();
        until_waiting(&sender, 5).await;
        disk.mend();
        assert_eq!(settled([&sender, &receiver]).await, [6, 1], "{failure:?}");
    }
}

/// A small disk at a folder, which root alone can make.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let mut mount = process::Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs"]);
        run(mount.arg(&folder)).unwrap();
        Self(folder)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut unmount = process::Command::new("umount");
        // What cannot be unmounted stays; the test has said why it failed.
        let _left = run(unmount.arg("--lazy").arg(&self.0));
    }
}

async fn tell(daemon: &Daemon, command: &str, with: u64) -> Result<Value> {
    let arguments = json!({ "with": with });
    let params = json!({ "instance": "wicked", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

/// What a program is told: look before you ask again.
const UNSETTLED: i64 = -32004;

#[tokio::test]
async fn a_full_disk_is_told_and_a_daemon_goes_on_when_there_is_room() {
    let setup = Setup::new("node").unwrap().plugin("tests/wicked").unwrap();
    let disk = SmallDisk::mount(setup.folder().join("data/plugins"));
    let mut daemon = setup.start().await.unwrap();
    tell(&daemon, "mark", 1).await.unwrap();
    disk.fill();
    // A megabyte each.
    let mut told = Ok(Value::Null);
    for part in 0..3 {
        if told.is_ok() {
            told = tell(&daemon, "fill", part).await;
        }
    }
    let told = told.unwrap_err();
    let refused = told.downcast_ref::<RpcError>();
    let code = refused.map(|error| error.code);
    assert_eq!(code, Some(UNSETTLED), "{told:#}");

    disk.make_room();
    let marks = async |daemon: &Daemon| tell(daemon, "marks", 0).await.ok();
    let marked = until("the plugin to go on", async || marks(&daemon).await).await;
    assert_eq!(marked.unwrap()[0], 1);
    tell(&daemon, "mark", 2).await.unwrap();
    tell(&daemon, "fill", 0).await.unwrap();
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(marks(&daemon).await.unwrap()[0], 2);
    daemon.kill().unwrap();
    drop(disk);
}
