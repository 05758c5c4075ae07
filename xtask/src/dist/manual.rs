//! wormholed.toml(5), made of the comments in config.toml; and the heads of pages that others made.

/// The page. Comments before a key are its text; comments before a section are that section's.
pub(super) fn config_page(config: &str, version: &str) -> String {
    let mut page = head("wormholed.toml", "5", version);
    // Keys and their values are too long for lines of one width.
    page +=
        ".ad l\n.SH NAME\nwormholed.toml \\- the config of the Wormholes router\n.SH DESCRIPTION\n";
    page += "The file is /etc/wormholes/config.toml, or what \\fB\\-\\-config\\fR names.\n";
    let mut comment: Vec<&str> = Vec::new();
    for line in config.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            comment.push(words);
        } else if let Some(section) = line.strip_prefix('#').filter(|line| line.starts_with('[')) {
            page += &format!(".SH {}\n{}", escaped(section), paragraph(&mut comment));
        } else if line.starts_with('#') {
            let key = line.trim_start_matches('#');
            page += &format!(".TP\n\\fB{}\\fR\n{}", escaped(key), paragraph(&mut comment));
        } else {
            page += &paragraph(&mut comment);
        }
    }
    page + ".SH SEE ALSO\nwormholed(8), wormholes(1)\n"
}

/// A page of clap's with its head as man(7) has it: clap leaves an empty date out, and what comes
/// after takes its place.
pub(super) fn with_head(page: &str, name: &str, section: &str, version: &str) -> String {
    let lines = page.lines().map(|line| match line.starts_with(".TH ") {
        true => head(name, section, version),
        false => format!("{line}\n"),
    });
    lines.collect()
}

fn head(name: &str, section: &str, version: &str) -> String {
    format!(".TH \"{name}\" \"{section}\" \"\" \"Wormholes {version}\" \"Wormholes\"\n")
}

/// The lines as one text; no line of it is taken for a request of roff's.
fn paragraph(comment: &mut Vec<&str>) -> String {
    let lines = comment.drain(..);
    lines
        .map(|line| format!("\\&{}\n", escaped(line)))
        .collect()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_become_the_texts_of_keys_and_sections() {
        let config = "\
# All of it.

# Do this.
#[part]
# Off by
# default. (restart)
#key-a = \"x\"
# An example.
##other = 1
";
        let page = config_page(config, "1.2.3");
        let (_, body) = page.split_once("names.\n").unwrap();
        let expected = "\
\\&All of it.
.SH [part]
\\&Do this.
.TP
\\fBkey\\-a = \"x\"\\fR
\\&Off by
\\&default. (restart)
.TP
\\fBother = 1\\fR
\\&An example.
.SH SEE ALSO
wormholed(8), wormholes(1)
";
        assert_eq!(body, expected);
    }

    #[test]
    fn heads_have_a_place_for_the_date() {
        let page = ".ie x\n.TH why 1  \"why \"\n.SH NAME\n";
        let expected = ".ie x\n.TH \"why\" \"1\" \"\" \"Wormholes 1\" \"Wormholes\"\n.SH NAME\n";
        assert_eq!(with_head(page, "why", "1", "1"), expected);
    }
}
