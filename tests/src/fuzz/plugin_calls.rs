//! What a plugin says to the host: events of three principals, and in each any calls with any words,
//! over rows that become durable, or are lost, when the input says so.
//!
//! A model of ordinary maps says what each call must find: what the event wrote, what events before it
//! left, nothing of those that failed, and nothing of anybody else.

mod blobs;
mod messages;
mod model;
mod rows;
mod wires;
mod words;

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::LazyLock,
};

use tempfile::TempDir;
use wormholes_host::{
    ErrorCode, Manifest, Refusal,
    trial::{
        Answered, Imports, Occasion, Running, Setting, Trial,
        words::{types, types::Error},
    },
};

use self::{
    model::{Kept, Model},
    words::Words,
};
use super::input::Input;
use crate::plugin_host::alone;

const SEED: [u8; 32] = [5; 32];
const USERS: [&str; 2] = ["alice", "bob"];
/// What a memory allocation and a name take beside what is counted, for each thing that an event asks
/// for: seven names of 128 bytes, a host's of 253, and numbers.
const ABOUT_BYTES: usize = 4 << 10;

/// Small limits, so that a short input reaches them; `write_kib` is another in the second one.
const MANIFEST: &str = r#"
[plugin]
name = "tried"
version = "1"
wasm = "tried.wasm"
[capabilities]
state = true
scratch = true
timers = true
messages = true
facts = ["credit"]
rules = ["may"]
keys = true
secret = true
blobs = true
users = true
http = ["/"]
fetch = true
sockets = ["tcp:80", "tls:443", "tcp-listen:80", "udp:53"]
[limits]
write_kib = 16
state_mib = 2
user_state_mib = 1
scratch_mib = 1
timers = 8
log_kib = 4
requests = 8
operations = 4
messages = 16
outbox_mib = 1
channels = 4
facts = 4
keys = 4
secrets = 8
blob_mib = 2
user_blob_mib = 1
one_blob_mib = 1
blob_fetches = 4
sockets = 4
[messages]
protocols = ["p", "q"]
"#;

static MANIFESTS: LazyLock<[Manifest; 2]> = LazyLock::new(|| {
    let large = MANIFEST.replace("write_kib = 16", "write_kib = 2048");
    [MANIFEST, large.as_str()].map(|text| Manifest::parse(text).unwrap())
});

/// Events, and what each of them says.
pub fn plugin_calls(input: &[u8]) {
    let mut input = Input::new(input);
    let mut play = Play::new(input.byte());
    while !input.is_empty() {
        play.step(&mut input);
    }
    play.finish();
}

/// What goes on.
struct Play {
    trial: Trial,
    manifest: &'static Manifest,
    models: Vec<Model>,
    /// What is durable, of each.
    durable: Vec<Kept>,
    /// What each batch makes durable.
    batches: VecDeque<(usize, Kept)>,
    live: Option<Live>,
    /// Where files of blobs lie, until all else is dropped.
    folder: Option<TempDir>,
}

/// An event that runs.
struct Live {
    who: usize,
    running: Running,
    /// As the event leaves it.
    model: Model,
    now_ms: u64,
    /// Requests that nobody answered before, and which were made by HTTP.
    open: Vec<(u64, bool)>,
    answered: BTreeSet<u64>,
    last_id: u64,
    /// Blobs that drafts became.
    sealed: BTreeSet<Vec<u8>>,
    is_query: bool,
    is_migration: bool,
    has_steps: bool,
    has_files: bool,
}

impl Play {
    fn new(choice: u8) -> Self {
        let manifest = MANIFESTS.iter().cycle().nth(choice.into()).unwrap();
        let folder = (choice & 2 == 2).then(folder);
        let (node, network) = alone(&SEED).unwrap();
        let setting = Setting {
            manifest,
            node,
            network,
            blobs: folder.as_ref().map(|folder| folder.path().join("blobs")),
            users: &USERS,
        };
        let trial = Trial::new(setting).unwrap();
        let n_principals = trial.principals();
        Self {
            trial,
            manifest,
            models: vec![Model::default(); n_principals],
            durable: vec![Kept::default(); n_principals],
            batches: VecDeque::new(),
            live: None,
            folder,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let Some(mut live) = self.live.take() else {
            return self.between(choice, input);
        };
        match choice {
            0..8 => return self.end(live, words::answered(input)),
            8..12 if live.has_steps => {
                if self.trial.step(&mut live.running) {
                    self.all_durable();
                }
            }
            12..16 if live.has_steps => {
                self.trial.end_steps(&mut live.running);
                live.has_steps = false;
                self.all_durable();
            }
            _ => live.call(choice, input),
        }
        self.live = Some(live);
    }

    /// Between two events.
    fn between(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice {
            0..16 => {
                self.trial.commit();
                if let Some((who, kept)) = self.batches.pop_front() {
                    *self.durable.get_mut(who).unwrap() = kept;
                }
            }
            16..32 => {
                while self.trial.commit() {}
                self.all_durable();
                self.check();
            }
            32..40 => self.lose(),
            40..48 => self.trial.pass(input.number()),
            _ => self.begin(usize::from(choice) % self.models.len(), input.occasion()),
        }
    }

    /// All that was appended is durable.
    fn all_durable(&mut self) {
        for (who, kept) in self.batches.drain(..) {
            *self.durable.get_mut(who).unwrap() = kept;
        }
    }

    fn lose(&mut self) {
        self.trial.lose().unwrap();
        self.batches.clear();
        for (model, durable) in self.models.iter_mut().zip(&mut self.durable) {
            durable.forget_volatile();
            *model = Model::from(durable.clone());
        }
        self.check();
    }

    fn begin(&mut self, who: usize, occasion: Occasion) {
        let (is_query, is_migration) =
            (occasion == Occasion::Query, occasion == Occasion::Migration);
        let mut bytes = Vec::new();
        if let Occasion::Blob(came) = &occasion {
            bytes.clone_from(came);
        }
        let Some(running) = self.trial.begin(who, occasion) else {
            return;
        };
        if is_migration {
            self.all_durable();
        }
        let model = self.models.get_mut(who).unwrap();
        if let Some(name) = running.timer() {
            assert_eq!(model.kept.first_timer(), Some(name));
            model.kept.timers.remove(name);
        }
        let mut model = match is_query {
            true => Model::from(self.durable.get(who).unwrap().clone()),
            false => model.clone(),
        };
        if is_query {
            model.kept.timers.clear();
        }
        if let Some(id) = running.came() {
            model.kept.hold(id.as_bytes(), bytes.len() as u64);
            let id = id.as_bytes().to_vec();
            model.kept.contents.insert(id, bytes.into());
        }
        self.live = Some(Live {
            who,
            open: running.requests().to_vec(),
            running,
            model,
            now_ms: self.trial.now_ms(),
            answered: BTreeSet::new(),
            last_id: 0,
            sealed: BTreeSet::new(),
            is_query,
            is_migration,
            has_steps: is_migration,
            has_files: self.folder.is_some(),
        });
    }

    fn end(&mut self, mut live: Live, answered: Answered) {
        live.sweep();
        let Live {
            who,
            running,
            model,
            answered: finished,
            is_query,
            is_migration,
            ..
        } = live;
        let request = running.request();
        let ended = self.trial.end(running, answered).unwrap();
        if is_query {
            return;
        }
        let limits = &self.manifest.limits;
        let things = 4 * (limits.messages + limits.requests + limits.operations)
            + 4 * (limits.blob_fetches + limits.sockets + limits.channels);
        // What a handler returns has a bound of its own.
        let by_itself = request.and_then(|id| ended.answers.get(&id));
        let by_itself = by_itself.map_or(0, |answer| answer.as_ref().map_or(0, Vec::len));
        let most = 4 * limits.write_bytes() + ABOUT_BYTES * things as usize + by_itself;
        assert!(ended.bytes <= most, "{} bytes of {most}", ended.bytes);
        // Those that it closed at once have as many places again.
        assert!(ended.connects <= 2 * limits.sockets as usize, "{ended:?}");
        assert!(ended.fetches <= limits.requests as usize, "{ended:?}");
        if ended.is_real {
            let mut answers = finished;
            let by_itself = request.filter(|id| ended.answers.contains_key(id));
            answers.extend(by_itself);
            assert!(ended.answers.keys().eq(&answers));
            *self.models.get_mut(who).unwrap() = model;
        }
        if ended.is_written {
            let kept = self.models.get(who).unwrap().kept.clone();
            self.batches.push_back((who, kept));
        }
        if is_migration {
            self.all_durable();
        }
        self.trial.check(who).unwrap();
    }

    fn check(&self) {
        for who in 0..self.models.len() {
            self.trial.check(who).unwrap();
        }
    }

    /// Each principal has what the model says, and what is durable is still there after a start.
    fn finish(&mut self) {
        if let Some(live) = self.live.take() {
            let over = Refusal::new(ErrorCode::Failed, "the input is over");
            self.end(live, Answered::No(over));
        }
        for is_started in [false, true] {
            if is_started {
                while self.trial.commit() {}
                self.all_durable();
                self.lose();
            }
            for who in 0..self.models.len() {
                self.begin(who, Occasion::Wake);
                let live = self.live.take().unwrap();
                self.end(live, Answered::Done(Vec::new()));
            }
        }
    }
}

impl Live {
    fn imports(&mut self) -> &mut Imports {
        self.running.imports()
    }

    fn call(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 8 {
            0..3 => self.call_rows(choice >> 3, input),
            3 => self.call_timers(choice >> 3, input),
            4 => self.call_messages(choice >> 3, input),
            5 => self.call_keys(choice >> 3, input),
            6 => self.call_blobs(choice >> 3, input),
            _ => self.call_wires(choice >> 3, input),
        }
    }

    /// A call is refused for what is known: its words, a limit, or since nothing may be written.
    fn refused(&self, error: &Error, is_valid: bool) {
        use types::ErrorCode as Code;

        assert!(error.message.len() <= 1024);
        match error.code {
            Code::Invalid => assert!(!is_valid, "{}", error.message),
            Code::Denied => assert!(self.is_query || self.has_steps, "{}", error.message),
            Code::Quota => {}
            Code::NotFound | Code::Unavailable | Code::Expired | Code::Failed => {
                panic!("{}", error.message)
            }
        }
    }

    /// The same of something that may not be there.
    fn not_found(&self, error: &Error, is_there: bool) {
        if matches!(error.code, types::ErrorCode::NotFound) {
            assert!(!is_there, "{}", error.message);
        } else {
            self.refused(error, true);
        }
    }

    /// The id of something that was begun: they rise.
    fn began(&mut self, id: u64) {
        assert!(id > self.last_id, "{id} after {}", self.last_id);
        self.last_id = id;
    }
}

/// In memory where the machine has files there: nothing is to survive it.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}
