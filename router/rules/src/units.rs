//! Durations, rates, sizes and distributions as scripts write them: `"3s"`, `"4MB/s"`, `"200MB"`,
//! `"exp 30ms"`. Bare numbers are seconds, bytes a second and bytes.

use std::time::Duration;

use rhai::Dynamic;

use crate::plan::Jitter;

/// Nothing in a plan or a verdict outlives a month; more is a slip of the unit.
const MAX_DURATION: Duration = Duration::from_secs(31 * 24 * 3600);

/// Reads a duration: `"250ms"`, `"3s"`, `"10m"`, `"1h"`, `"1d"`, or a number of seconds.
pub(crate) fn duration(value: &Dynamic) -> Result<Duration, String> {
    let seconds = match number(value) {
        Some(seconds) => seconds,
        None => match value.read_lock::<rhai::ImmutableString>() {
            Some(text) => return parse_duration(&text),
            None => {
                return Err(format!(
                    "a duration is \"3s\" or a number of seconds, not {}",
                    value.type_name()
                ));
            }
        },
    };
    bounded(seconds)
}

/// Reads the window of a rate or a quota: a duration that is not nothing, in which nothing would
/// ever be counted.
pub(crate) fn window(value: &Dynamic) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("a window is longer than nothing: write \"1m\"".to_owned()),
        window => Ok(window),
    }
}

/// Reads `"250ms"` and the like.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => {
            return Err(format!(
                "`{text}` is not a duration: write 250ms, 3s, 10m, 1h or 1d"
            ));
        }
    };
    bounded(number * scale)
}

/// Reads a rate in bytes a second: `"4MB/s"` or a number.
pub(crate) fn rate(value: &Dynamic) -> Result<u64, String> {
    match value.read_lock::<rhai::ImmutableString>() {
        Some(text) => match text.strip_suffix("/s") {
            Some(size) => parse_size(size),
            None => Err(format!("`{}` is not a rate: write 256kB/s or 4MB/s", *text)),
        },
        None => whole(value, "a rate is \"4MB/s\" or a number of bytes a second"),
    }
}

/// Reads a number of bytes: `"200MB"` or a number.
pub(crate) fn size(value: &Dynamic) -> Result<u64, String> {
    match value.read_lock::<rhai::ImmutableString>() {
        Some(text) => parse_size(&text),
        None => whole(value, "a size is \"200MB\" or a number of bytes"),
    }
}

/// Reads a distribution of waits: `"exp 30ms"` or `"uniform 50ms"`.
pub(crate) fn distribution(text: &str) -> Result<Jitter, String> {
    match text.split_once(' ') {
        Some(("exp", mean)) => Ok(Jitter::Exp {
            mean: parse_duration(mean.trim())?,
        }),
        Some(("uniform", max)) => Ok(Jitter::Uniform {
            max: parse_duration(max.trim())?,
        }),
        _ => Err(format!(
            "`{text}` is not a distribution: write \"exp 30ms\" or \"uniform 50ms\""
        )),
    }
}

/// Puts what a script gave into its place.
pub(crate) fn put<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

/// A number as seconds or the like; none for anything else.
fn number(value: &Dynamic) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "bounded by a month of seconds")]
    value
        .as_int()
        .map(|int| int as f64)
        .or_else(|_| value.as_float())
        .ok()
}

fn whole(value: &Dynamic, what: &str) -> Result<u64, String> {
    let number = number(value).ok_or_else(|| format!("{what}, not {}", value.type_name()))?;
    to_bytes(number)
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let scale = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return Err(format!("`{text}` is not a size: write 512kB, 200MB or 1GB")),
    };
    to_bytes(number * scale)
}

fn split_unit(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number = digits
        .parse()
        .map_err(|_| format!("`{text}` does not begin with a number"))?;
    Ok((number, unit.trim()))
}

fn bounded(seconds: f64) -> Result<Duration, String> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration),
        _ => Err("a duration lies between nothing and 31 days".to_owned()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked"
)]
fn to_bytes(number: f64) -> Result<u64, String> {
    // 2^53: exact in a float, and more than any flow carries.
    if (0.0..=9_007_199_254_740_992.0).contains(&number) {
        Ok(number as u64)
    } else {
        Err("a number of bytes lies between 0 and 2^53".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_duration(text: &str, expected_ms: Option<u64>) {
        let found = parse_duration(text).ok();
        assert_eq!(found, expected_ms.map(Duration::from_millis), "{text}");
    }

    #[test]
    fn durations_carry_their_unit() {
        check_duration("250ms", Some(250));
        check_duration("3s", Some(3000));
        check_duration("1.5 s", Some(1500));
        check_duration("10m", Some(600_000));
        check_duration("1h", Some(3_600_000));
        for text in ["", "3", "s", "3 parsecs", "-3s", "1e9d", "40d", "..s"] {
            check_duration(text, None);
        }
    }

    #[test]
    fn rates_and_sizes_are_bytes() {
        assert_eq!(rate(&"4MB/s".into()), Ok(4_000_000));
        assert_eq!(rate(&"64KiB/s".into()), Ok(65536));
        assert_eq!(rate(&Dynamic::from(1000_i64)), Ok(1000));
        assert!(rate(&"4MB".into()).is_err());
        assert!(rate(&"4Mb/s".into()).is_err());
        assert_eq!(size(&"200MB".into()), Ok(200_000_000));
        assert!(size(&Dynamic::from(-1_i64)).is_err());
        assert!(size(&Dynamic::UNIT).is_err());
    }

    #[test]
    fn distributions_name_their_shape() {
        assert_eq!(
            distribution("exp 30ms"),
            Ok(Jitter::Exp {
                mean: Duration::from_millis(30)
            })
        );
        assert_eq!(
            distribution("uniform 1s"),
            Ok(Jitter::Uniform {
                max: Duration::from_secs(1)
            })
        );
        assert!(distribution("gauss 1s").is_err());
    }
}
