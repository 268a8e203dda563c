//! Who may do what in a channel, by the options of its namespace.
//!
//! Everything is closed until an option opens it. A client that is refused learns that it is; which
//! option would have let it in, the developer reads in the log.

use std::fmt;

use regex::Regex;
use tidegate_ring::publication::is_channel_name;

use crate::settings::{Namespace, Settings};

/// Marks channels that take a subscription token, whatever their namespace allows.
const PRIVATE: char = '$';
/// What comes after the last one of these names the users of a channel.
const USERS: char = '#';
const USER_SEPARATOR: char = ',';

/// What else a client may do in a channel, than subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Publish,
    Presence,
    History,
}

/// Why something is refused: what would open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// This option of the namespace is off.
    Option(&'static str),
    PrivateWithoutToken,
    /// The application decides, and cannot be asked about this client.
    Unasked,
    /// The channel's name lists the users that may have it, and this one is not among them.
    OtherUsers,
    /// The token is no good.
    Token(&'static str),
}

impl fmt::Display for Closed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(option) => write!(out, "its namespace needs {option} = true"),
            Self::PrivateWithoutToken => {
                write!(
                    out,
                    "a channel that begins with $ needs a subscription token"
                )
            }
            Self::Unasked => write!(
                out,
                "its namespace has subscribe_hook = true, and the application is asked only where \
                 hooks has somebody to answer, and not about what one-way clients wish for"
            ),
            Self::OtherUsers => write!(out, "the name of the channel lists other users"),
            Self::Token(why) => write!(out, "the token is refused: {why}"),
        }
    }
}

/// How a subscription without a token is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entrance {
    Open,
    /// The application is to be asked.
    Hook,
    Closed(Closed),
}

/// Patterns of names, by namespace in the order of the settings.
pub(super) struct Names(Vec<Option<Regex>>);

impl Names {
    pub fn new(settings: &Settings) -> Self {
        let pattern = |namespace: &Namespace| {
            let pattern = namespace.channel_regex.as_str();
            // The configuration has checked it; one that is none all the same lets nothing in.
            (!pattern.is_empty())
                .then(|| {
                    Regex::new(pattern)
                        .or_else(|_| Regex::new("[^\\s\\S]"))
                        .ok()
                })
                .flatten()
        };
        Self(settings.namespaces.iter().map(pattern).collect())
    }

    /// The namespace of `channel`, if the name is one that channels of it can have.
    pub fn namespace<'a>(
        &self,
        settings: &'a Settings,
        channel: &str,
    ) -> Result<&'a Namespace, NameError> {
        if !is_channel_name(channel) {
            return Err(NameError::Bad);
        }
        let (place, namespace) = settings.namespace_at(channel).ok_or(NameError::Unknown)?;
        match &self.0[place] {
            Some(pattern) if !pattern.is_match(local_name(channel)) => Err(NameError::Bad),
            _ => Ok(namespace),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameError {
    Bad,
    /// No such namespace.
    Unknown,
}

/// The part of a name that comes after the namespace.
fn local_name(channel: &str) -> &str {
    let name = channel.strip_prefix(PRIVATE).unwrap_or(channel);
    name.split_once(':').map_or(name, |(_, local)| local)
}

/// Whether and how `user` (empty: anonymous) comes into a channel without a token. `asks`: there is
/// an application to ask.
pub(super) fn entrance(namespace: &Namespace, channel: &str, user: &str, asks: bool) -> Entrance {
    if channel.starts_with(PRIVATE) {
        return Entrance::Closed(Closed::PrivateWithoutToken);
    }
    let users = namespace
        .allow_user_limited_channels
        .then(|| channel.rsplit_once(USERS))
        .flatten();
    if let Some((_, users)) = users {
        let is_listed = !user.is_empty() && users.split(USER_SEPARATOR).any(|each| each == user);
        return match is_listed {
            true => Entrance::Open,
            false => Entrance::Closed(Closed::OtherUsers),
        };
    }
    if namespace.subscribe_hook {
        return match asks {
            true => Entrance::Hook,
            false => Entrance::Closed(Closed::Unasked),
        };
    }
    if !namespace.allow_subscribe_for_client {
        return Entrance::Closed(Closed::Option("allow_subscribe_for_client"));
    }
    if user.is_empty() && !namespace.allow_subscribe_for_anonymous {
        return Entrance::Closed(Closed::Option("allow_subscribe_for_anonymous"));
    }
    Entrance::Open
}

/// Whether `user` (empty: anonymous) may do something in a channel, as a subscriber of it or not.
pub(super) fn may(
    act: Act,
    namespace: &Namespace,
    user: &str,
    is_subscribed: bool,
) -> Result<(), Closed> {
    let (for_client, for_subscriber, for_anonymous) = match act {
        Act::Publish => (
            (
                namespace.allow_publish_for_client,
                "allow_publish_for_client",
            ),
            namespace.allow_publish_for_subscriber,
            (
                namespace.allow_publish_for_anonymous,
                "allow_publish_for_anonymous",
            ),
        ),
        Act::Presence => (
            (
                namespace.allow_presence_for_client,
                "allow_presence_for_client",
            ),
            namespace.allow_presence_for_subscriber,
            (
                namespace.allow_presence_for_anonymous,
                "allow_presence_for_anonymous",
            ),
        ),
        Act::History => (
            (
                namespace.allow_history_for_client,
                "allow_history_for_client",
            ),
            namespace.allow_history_for_subscriber,
            (
                namespace.allow_history_for_anonymous,
                "allow_history_for_anonymous",
            ),
        ),
    };
    if !(for_client.0 || for_subscriber && is_subscribed) {
        return Err(Closed::Option(for_client.1));
    }
    if user.is_empty() && !for_anonymous.0 {
        return Err(Closed::Option(for_anonymous.1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Namespace {
        Namespace {
            allow_subscribe_for_client: true,
            ..Namespace::default()
        }
    }

    #[test]
    fn everything_is_closed_by_default_and_says_what_opens_it() {
        let closed = Namespace::default();
        assert_eq!(
            entrance(&closed, "a", "ann", false),
            Entrance::Closed(Closed::Option("allow_subscribe_for_client"))
        );
        for act in [Act::Publish, Act::Presence, Act::History] {
            assert!(may(act, &closed, "ann", true).is_err());
        }
    }

    #[test]
    fn who_has_no_user_needs_one_option_more() {
        assert_eq!(entrance(&open(), "a", "ann", false), Entrance::Open);
        assert_eq!(
            entrance(&open(), "a", "", false),
            Entrance::Closed(Closed::Option("allow_subscribe_for_anonymous"))
        );
        let namespace = Namespace {
            allow_history_for_subscriber: true,
            ..Namespace::default()
        };
        assert_eq!(may(Act::History, &namespace, "ann", true), Ok(()));
        assert!(may(Act::History, &namespace, "ann", false).is_err());
        assert_eq!(
            may(Act::History, &namespace, "", true),
            Err(Closed::Option("allow_history_for_anonymous"))
        );
    }

    #[test]
    fn a_private_channel_takes_a_token_whatever_its_namespace_allows() {
        assert_eq!(
            entrance(&open(), "$a", "ann", true),
            Entrance::Closed(Closed::PrivateWithoutToken)
        );
    }

    #[test]
    fn a_name_that_lists_users_lets_those_in_and_no_others() {
        let namespace = Namespace {
            allow_user_limited_channels: true,
            ..open()
        };
        for (user, expected) in [
            ("42", Entrance::Open),
            ("43", Entrance::Open),
            ("4", Entrance::Closed(Closed::OtherUsers)),
            ("", Entrance::Closed(Closed::OtherUsers)),
        ] {
            assert_eq!(entrance(&namespace, "dialog#42,43", user, true), expected);
        }
        assert_eq!(entrance(&open(), "dialog#42", "1", false), Entrance::Open);
    }

    #[test]
    fn the_application_is_asked_whatever_the_options_say_and_nobody_passes_unasked() {
        let namespace = Namespace {
            subscribe_hook: true,
            ..open()
        };
        assert_eq!(entrance(&namespace, "a", "", true), Entrance::Hook);
        assert_eq!(
            entrance(&namespace, "a", "ann", false),
            Entrance::Closed(Closed::Unasked)
        );
    }

    #[test]
    fn a_pattern_holds_for_the_part_after_the_namespace() {
        let mut settings = Settings::default();
        settings.namespaces[0].channel_regex = "^[a-z]+$".to_string();
        let names = Names::new(&settings);
        assert!(names.namespace(&settings, "public:news").is_ok());
        assert!(names.namespace(&settings, "$public:news").is_ok());
        assert_eq!(
            names.namespace(&settings, "public:News").err(),
            Some(NameError::Bad)
        );
        assert_eq!(
            names.namespace(&settings, "nowhere:a").err(),
            Some(NameError::Unknown)
        );
        assert_eq!(names.namespace(&settings, "").err(), Some(NameError::Bad));
    }
}
