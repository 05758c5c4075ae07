//! What one call of a hook can reach, and what it leaves behind.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rhai::{Dynamic, EvalAltResult, NativeCallContext};

use crate::{
    api::lookups::node_name,
    decision::{Level, Message},
    script::ground::Ground,
};

/// Values read that are kept for `why`. Overflow: later ones are not kept.
const MAX_BECAUSE: usize = 64;
/// Bytes of one value read. Overflow: cut.
const MAX_BECAUSE_BYTES: usize = 128;
/// Lines, notifications and tags of one call, each. Overflow: later ones are not kept.
const MAX_MESSAGES: usize = 16;
/// Bytes of one of them. Overflow: cut.
const MAX_MESSAGE_BYTES: usize = 512;

/// The result of a function that scripts call.
pub(crate) type ScriptResult<T> = Result<T, Box<EvalAltResult>>;

/// One call of one hook of one script.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) script: Arc<str>,
    pub(crate) ground: Arc<Ground>,
    pub(crate) now: SystemTime,
    record: Mutex<Record>,
}

/// What a call leaves behind.
#[derive(Debug, Default, Clone)]
pub(crate) struct Record {
    pub(crate) because: Vec<(String, String)>,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) log: Vec<Message>,
    pub(crate) notifications: Vec<Message>,
}

/// A call as Rhai carries it: on the tag of the run.
#[derive(Debug, Clone)]
pub(crate) struct CallTag(pub(crate) Arc<Call>);

impl Call {
    pub(crate) fn new(script: Arc<str>, ground: Arc<Ground>, now: SystemTime) -> Self {
        Self {
            script,
            ground,
            now,
            record: Mutex::default(),
        }
    }

    /// The call that `context` belongs to.
    pub(crate) fn of(context: &NativeCallContext) -> ScriptResult<Arc<Self>> {
        context
            .tag()
            .and_then(|tag| tag.read_lock::<CallTag>())
            .map(|tag| tag.0.clone())
            .ok_or_else(|| "this works only in a hook".into())
    }

    /// Keeps that the script read `owner.field` and found `value`.
    pub(crate) fn read(&self, owner: &str, field: &str, value: &Dynamic) {
        let mut record = self.record();
        let known = record.because.iter().any(|(key, _)| {
            key.len() == owner.len() + field.len() + 1
                && key.starts_with(owner)
                && key.ends_with(field)
        });
        if !known && record.because.len() < MAX_BECAUSE {
            record
                .because
                .push((format!("{owner}.{field}"), shown(value)));
        }
    }

    /// Keeps that `question` (a call as it would be written) was answered with `answer`.
    pub(crate) fn answered(&self, question: String, answer: &Dynamic) {
        let mut record = self.record();
        let known = record.because.iter().any(|(key, _)| *key == question);
        if !known && record.because.len() < MAX_BECAUSE {
            record
                .because
                .push((cut(question, MAX_BECAUSE_BYTES), shown(answer)));
        }
    }

    pub(crate) fn tag(&self, key: &str, value: &Dynamic) {
        let mut record = self.record();
        let value = cut(value.to_string(), MAX_MESSAGE_BYTES);
        if let Some(tag) = record.tags.iter_mut().find(|(known, _)| known == key) {
            tag.1 = value;
        } else if record.tags.len() < MAX_MESSAGES {
            let key = cut(key.to_owned(), MAX_MESSAGE_BYTES);
            record.tags.push((key, value));
        }
    }

    pub(crate) fn log(&self, level: Level, text: &str) {
        push_message(&mut self.record().log, level, text);
    }

    pub(crate) fn notify(&self, level: Level, text: &str) {
        push_message(&mut self.record().notifications, level, text);
    }

    /// Takes what was left behind so far.
    pub(crate) fn take_record(&self) -> Record {
        std::mem::take(&mut *self.record())
    }

    /// Every change is one push: a panic elsewhere leaves nothing half done.
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push_message(messages: &mut Vec<Message>, level: Level, text: &str) {
    if messages.len() < MAX_MESSAGES {
        let text = cut(text.to_owned(), MAX_MESSAGE_BYTES);
        messages.push(Message { level, text });
    }
}

fn shown(value: &Dynamic) -> String {
    if value.is_array() || value.is_map() {
        return format!("{} of {}", value.type_name(), count(value));
    }
    if value.is_unit() {
        return "()".to_owned();
    }
    if let Some(name) = node_name(value) {
        return name;
    }
    cut(value.to_string(), MAX_BECAUSE_BYTES)
}

fn count(value: &Dynamic) -> usize {
    value
        .read_lock::<rhai::Array>()
        .map(|items| items.len())
        .or_else(|| value.read_lock::<rhai::Map>().map(|entries| entries.len()))
        .unwrap_or_default()
}

/// The line that a function was called on; 0 when it is not known.
pub(crate) fn line_of(context: &NativeCallContext) -> usize {
    context.call_position().line().unwrap_or(0)
}

/// At most `max` bytes of `text`, on a boundary of characters.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
