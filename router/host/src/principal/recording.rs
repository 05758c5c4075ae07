//! What a principal has recorded of its events, while somebody wants that.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Actor;
use crate::{
    edition::Edition,
    event::Event,
    guest::{Fault, Outcome},
    recording::{
        Blob, Ended, EventFrame, Found, Frame, Grants, Happened, Known, PluginFrame, Remembered,
        Tape, TrackFrame,
    },
    rows::own_key,
    store::{Overlay, StoreError, View, Writes},
    transaction::Transaction,
};

/// For how long a principal is left out at least.
const PAUSE: Duration = Duration::from_secs(10);
/// Rows of one frame, and their bytes.
const FRAME_ROWS: usize = 4096;
const FRAME_BYTES: usize = 1 << 20;

/// Rows of one frame: keys and values.
type FrameOfRows = Vec<(Blob, Blob)>;

/// Where a principal's events are recorded.
pub(super) struct Track {
    part: u64,
    /// `None`: it is left out since then.
    number: Result<u64, Instant>,
    edition: Arc<Edition>,
    /// As the event before found it.
    known: Known,
    /// Timers whose event was consumed since, without a handler that did it.
    timers_gone: Vec<Arc<str>>,
}

/// An event that runs and is recorded.
pub(super) struct Scene {
    track: u64,
    happened: Happened,
    is_fresh: bool,
    found: Found,
}

impl Actor {
    /// Begins to record, or ends it, as the instance's recorder has it by now.
    pub(super) fn follow_recorder(&mut self) {
        let part = self.loaded.recorder.part();
        if part == 0 {
            self.track = None;
            return;
        }
        let goes_on = |track: &Track| {
            let waits = track.number.is_err_and(|since| since.elapsed() < PAUSE);
            let is_same = track.part == part && Arc::ptr_eq(&track.edition, &self.edition);
            is_same && (track.number.is_ok() || waits)
        };
        if self.track.as_ref().is_some_and(goes_on) {
            return;
        }
        // What an instance remembers is in no recording.
        self.instance = None;
        self.track = Some(Track {
            part,
            number: self.begin_track(part).ok_or_else(Instant::now),
            edition: Arc::clone(&self.edition),
            known: Known::of(&self.memory),
            timers_gone: Vec::new(),
        });
    }

    fn begin_track(&self, part: u64) -> Option<u64> {
        let recorder = &self.loaded.recorder;
        let most = recorder.most_at_begin();
        // A store that cannot be read is met by the event itself.
        let Some(rows) = self.rows(most).ok()? else {
            recorder.leave_out();
            return None;
        };
        let track = recorder.next_track(part)?;
        let plugin = plugin(&self.edition);
        let begins = TrackFrame {
            track,
            principal: self.name.clone(),
            digest: plugin.digest,
            remembered: Remembered::of(&self.memory),
        };
        let mut frames = vec![Frame::Track(Box::new(begins))];
        frames.extend(rows.into_iter().map(|rows| Frame::Rows(track, rows)));
        let is_recorded = recorder.begin(part, &plugin, &frames);
        is_recorded.then_some(track)
    }

    /// All of the plugin's own rows, a frame at a time; `None`: there are more.
    fn rows(&self, most: u64) -> Result<Option<Vec<FrameOfRows>>, StoreError> {
        let (snapshot, none) = (self.store.snapshot(), Writes::default());
        let overlay: &Overlay = &self.memory.overlay;
        let view = View::new(&none, overlay, &snapshot);
        let prefix = self.home.key(self.memory.side.space(), &[]);
        let (mut frames, mut bytes) = (Vec::new(), self.memory.scratch_bytes);
        let mut last: Option<Vec<u8>> = None;
        loop {
            let rows = view.scan(&prefix, last.as_deref(), false, FRAME_ROWS, FRAME_BYTES)?;
            let Some((key, _)) = rows.last() else {
                return Ok(Some(frames));
            };
            last = Some(key.clone());
            let sizes = rows.iter().map(|(key, value)| key.len() + value.len());
            bytes += sizes.sum::<usize>() as u64;
            if bytes > most {
                return Ok(None);
            }
            let rows = rows.into_iter();
            let rows = rows.map(|(key, value)| (own_key(&key).into(), Blob(value)));
            frames.push(rows.collect());
        }
    }

    /// What the event finds; `None`: it is not recorded.
    pub(super) fn scene(&mut self, event: &Event, is_fresh: bool) -> Option<Scene> {
        let track = self.track.as_mut()?;
        let Ok(number) = track.number else {
            self.loaded.recorder.leave_out();
            return None;
        };
        let Some(happened) = Happened::of(event) else {
            self.loaded.recorder.leave_out();
            self.leave_track();
            return None;
        };
        let gone = mem::take(&mut track.timers_gone);
        Some(Scene {
            track: number,
            happened,
            is_fresh,
            found: Found::of(&self.memory, &mut track.known, gone),
        })
    }

    /// The event ran.
    pub(super) fn keep(
        &mut self,
        scene: Option<Scene>,
        transaction: &mut Transaction,
        outcome: &Result<Outcome, Fault>,
        took: Duration,
    ) {
        let (Some(scene), Some(track)) = (scene, &self.track) else {
            return;
        };
        let Some(ended) = Ended::of(outcome) else {
            // It is tried again, and found otherwise then.
            self.track = None;
            return;
        };
        let tape = transaction.take_tape();
        if tape.has_left() {
            self.loaded.recorder.leave_out();
            self.leave_track();
            return;
        }
        let answers = tape.into_answers();
        let (effects, channels) = match ended.is_real() {
            true => transaction.effects(),
            false => Default::default(),
        };
        let stamp = transaction.stamp();
        let granted = &self.edition.plugin().granted;
        let may_keep_secrets = granted.secret || granted.keys;
        let mut found = scene.found;
        found.others_keep = transaction.others_keep();
        let frame = EventFrame {
            track: scene.track,
            id: stamp.id,
            attempt: stamp.attempt,
            now_ms: stamp.now_ms,
            seed: (!may_keep_secrets).then_some(stamp.seed),
            happened: scene.happened,
            is_fresh: scene.is_fresh,
            found,
            answers,
            ended,
            effects,
            channels,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        let frame = Frame::Event(Box::new(frame));
        if !self.loaded.recorder.event(track.part, &frame) {
            // What comes next rests on it.
            self.leave_track();
        }
    }

    /// The principal is left out for a while: to begin anew takes all its rows.
    fn leave_track(&mut self) {
        if let Some(track) = &mut self.track {
            track.number = Err(Instant::now());
        }
    }

    /// A timer's event was consumed, though its handler did not do it.
    pub(super) fn note_timer_gone(&mut self, name: &Arc<str>) {
        if let Some(track) = &mut self.track {
            track.timers_gone.push(Arc::clone(name));
        }
    }
}

impl Scene {
    /// Has what the host answers kept.
    pub(super) fn prepare(transaction: &mut Transaction, scene: Option<&Self>) {
        if scene.is_some() {
            transaction.use_tape(Tape::recorder());
        }
    }
}

/// The version, as a recording has it.
fn plugin(edition: &Edition) -> PluginFrame {
    let plugin = edition.plugin();
    let granted = &plugin.granted;
    let mut frame = PluginFrame {
        digest: [0; 32],
        files: edition.digest,
        sha256: edition.code.sha256(),
        instance: plugin.name.to_string(),
        node: plugin.around.node,
        manifest: edition.text.to_string(),
        grants: Grants {
            names: granted.names().map(str::to_owned).collect(),
            facts: granted.facts.clone(),
            rules: granted.rules.clone(),
            http: granted.http.clone(),
            sockets: granted.sockets.clone(),
        },
        config: plugin.config.clone(),
        strangers: plugin.strangers,
    };
    frame.name();
    frame
}
