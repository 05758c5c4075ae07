//! HTTP requests on their way to plugins: which one answers, how many it takes at once, and what it
//! says.

use std::{fmt, sync::Arc, time::Duration};

use super::{Host, Shared};
use crate::{
    edition::Edition,
    event::{ErrorCode, Principal, Query, Refusal, Wish},
    http::{HttpRequest, HttpResponse},
    loaded::HttpTurn,
    mail::Owner,
    transaction::Limit,
};

/// How a path names a user: `/~alice/blog`.
const USER: &str = "/~";
/// How a manifest names the path `/NAME`, where NAME is the instance, and begins those below it.
const INSTANCE: &str = "/INSTANCE";

/// Who answers a request, whose body may yet have to come.
pub struct HttpPage {
    shared: Arc<Shared>,
    owner: Owner,
    edition: Arc<Edition>,
    path: String,
    is_query: bool,
}

/// A request on its way to a plugin. Dropping it gives up its place.
pub struct HttpPlace {
    shared: Arc<Shared>,
    owner: Owner,
    path: String,
    is_query: bool,
    patience: Duration,
    /// Until it is answered.
    turn: HttpTurn,
}

impl Host {
    /// Finds the plugin that answers a request: of all granted paths the longest one that the request's is, or is below. A path that begins with `/~NAME` is for that
    /// user, by what follows.
    ///
    /// # Errors
    /// No plugin answers there, or there is no such user.
    pub fn http(&self, method: &str, path: &str) -> Result<HttpPage, Refusal> {
        let nobody = || Refusal::new(ErrorCode::NotFound, "nothing is here");
        let (user, path) = of_user(path);
        let all = self.shared.all();
        let served = all.into_iter().filter_map(|loaded| {
            let edition = loaded.edition();
            let plugin = edition.plugin();
            let paths = plugin.granted.http.iter();
            let length = longest(paths, &plugin.name, path)?;
            Some((length, loaded, edition))
        });
        let best = served.max_by_key(|(length, ..)| *length);
        let (_, loaded, edition) = best.ok_or_else(nobody)?;
        let principal = match user {
            None => Principal::Node,
            Some(name) => Principal::User(name.into()),
        };
        // Whether it is the user or the plugin that does not have the other is nobody's business.
        self.shared
            .check_principal(&loaded, &principal)
            .map_err(|_| nobody())?;
        let reads = matches!(method, "GET" | "HEAD");
        let queries = edition.manifest.http.queries.iter();
        let is_query = reads && longest(queries, &loaded.name, path).is_some();
        Ok(HttpPage {
            shared: Arc::clone(&self.shared),
            path: path.to_owned(),
            is_query,
            edition,
            owner: Owner::new(loaded, principal),
        })
    }
}

impl HttpPage {
    /// The longest body that the plugin takes.
    pub fn max_body_bytes(&self) -> usize {
        self.edition.manifest.http.body_bytes()
    }

    /// Takes one of the plugin's places.
    ///
    /// # Errors
    /// It has too many requests already.
    pub fn enter(self) -> Result<HttpPlace, Refusal> {
        let (loaded, manifest) = (&self.owner.loaded, &self.edition.manifest);
        let turn = HttpTurn::take(loaded, manifest.limits.http).ok_or_else(|| {
            loaded.figures.hits(&[Limit::Http]);
            Refusal::new(ErrorCode::Unavailable, Limit::Http.mend())
        })?;
        Ok(HttpPlace {
            shared: self.shared,
            owner: self.owner,
            path: self.path,
            is_query: self.is_query,
            patience: manifest.http.patience(),
            turn,
        })
    }
}

impl HttpPlace {
    /// How long an answer may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Asks the plugin, and waits until the answer is durable. The path is that which [`Host::http`]
    /// was asked for. Dropping the future cancels it.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    pub async fn ask(self, request: HttpRequest) -> Result<HttpResponse, Refusal> {
        let Self {
            shared,
            owner,
            path,
            is_query,
            patience,
            turn,
        } = self;
        let request = HttpRequest { path, ..request };
        let answer = if is_query {
            let threads = shared.threads.clone();
            let answer = async move {
                let Owner {
                    loaded, principal, ..
                } = owner;
                // It goes on when nobody waits for it any more, and counts until then.
                let _turn = turn;
                let query = Query::Http(request);
                loaded.query(principal, &query, &shared.store).await
            };
            let answered = threads.spawn(answer).await;
            answered.map_err(|_| Refusal::new(ErrorCode::Unavailable, "the plugins stop"))??
        } else {
            let _turn = turn;
            let wish = Wish::Http(Arc::new(request));
            shared.wish(&owner, wish, patience)?.answer().await?
        };
        let broken = || Refusal::new(ErrorCode::Failed, "the plugin's answer cannot be read");
        HttpResponse::decode(&answer).ok_or_else(broken)
    }
}

impl fmt::Debug for HttpPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpPage").field(&self.path).finish()
    }
}

impl fmt::Debug for HttpPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpPlace").field(&self.turn).finish()
    }
}

/// The user that a path names, and the rest of it.
fn of_user(path: &str) -> (Option<&str>, &str) {
    let Some(named) = path.strip_prefix(USER) else {
        return (None, path);
    };
    match named.split_once('/') {
        Some((user, _)) => (
            Some(user),
            path.get(USER.len() + user.len()..).unwrap_or("/"),
        ),
        None => (Some(named), "/"),
    }
}

/// How long the longest of these paths is that covers one.
fn longest<'a>(
    paths: impl Iterator<Item = &'a String>,
    instance: &str,
    path: &str,
) -> Option<usize> {
    let lengths = paths.filter_map(|served| {
        let below = served.strip_prefix(INSTANCE);
        let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
        let own = below.map(|below| format!("/{instance}{below}"));
        let served = own.as_ref().unwrap_or(served);
        covers(served, path).then_some(served.len())
    });
    lengths.max()
}

fn covers(served: &str, path: &str) -> bool {
    let rest = match served {
        "/" => return path.starts_with('/'),
        _ => path.strip_prefix(served),
    };
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_that_covers_a_request_answers_it() {
        let paths = ["/", "/blog", "/INSTANCE", "/blog/feed", "/INSTANCE/notes"];
        let paths = paths.map(str::to_owned);
        for (path, length) in [
            ("/", 1),
            ("/blogs", 1),
            ("/blog", 5),
            ("/blog/", 5),
            ("/blog/../x", 5),
            ("/blog/feed/1", 10),
            ("/wiki/a", 5),
            ("/wiki/notes/1", 11),
            ("/wiki/notes1", 5),
            ("/INSTANCE", 1),
        ] {
            assert_eq!(longest(paths.iter(), "wiki", path), Some(length), "{path}");
        }
        assert_eq!(longest(paths[1..].iter(), "wiki", "/other"), None);
        assert_eq!(longest(paths.iter(), "wiki", "*"), None);
    }

    #[test]
    fn a_users_part_of_a_path_is_taken_away() {
        assert_eq!(of_user("/blog"), (None, "/blog"));
        assert_eq!(of_user("/~alice"), (Some("alice"), "/"));
        assert_eq!(of_user("/~alice/"), (Some("alice"), "/"));
        assert_eq!(of_user("/~alice/blog/1"), (Some("alice"), "/blog/1"));
        assert_eq!(of_user("/~"), (Some(""), "/"));
        assert_eq!(of_user("//~alice"), (None, "//~alice"));
    }
}
