//! `wormholes user …`.

use wormholes_proto::control::{
    Call, NoParams, UserInfo, UserList, UserParams, UserRemoveParams, UserStanding,
};

use super::{Context, consent::consent, field};
use crate::{
    args::UserCommand,
    error::CliError,
    format,
    output::{Style, Tone},
    table::{Cell, Table},
};

pub(super) fn run(context: &mut Context<'_>, command: UserCommand) -> Result<(), CliError> {
    match command {
        UserCommand::Add { name } => context.show(&Call::UserAdd(UserParams { name }), one),
        UserCommand::List => context.show(&Call::UserList(NoParams {}), render),
        UserCommand::Remove { name, purge, yes } => {
            if purge && !yes {
                let all = format!("delete all that plugins keep for `{name}`, for ever?");
                consent("", &all)?;
            }
            context.show(&Call::UserRemove(UserRemoveParams { name, purge }), one)
        }
    }
}

fn one(user: &UserInfo, style: Style) -> String {
    field(style, &user.name, standing(user).0)
}

fn render(list: &UserList, style: Style) -> String {
    if list.users.is_empty() {
        return "no users; `wormholes user add NAME` makes one\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "STATE", "ADDED"]);
    for user in &list.users {
        let (state, tone) = standing(user);
        table.row([
            user.name.as_str().into(),
            Cell::toned(tone, state),
            format::utc(user.added_unix_ms).as_str().into(),
        ]);
    }
    table.render(style)
}

fn standing(user: &UserInfo) -> (&'static str, Tone) {
    match user.standing {
        UserStanding::Active => ("active", Tone::Good),
        UserStanding::Removed => ("removed", Tone::Faint),
        UserStanding::Purged => ("purged", Tone::Faint),
    }
}
