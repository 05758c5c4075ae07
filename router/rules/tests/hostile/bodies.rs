//! Bodies of `route` that try to hold up or fill up the node.

/// A name, what `route` does, and the functions beside it.
pub(crate) const BODIES: &[(&str, &str, &str)] = &[
    ("an endless loop", "loop { }", ""),
    ("an endless loop that calls", "loop { hash(c.host); }", ""),
    (
        "an endless loop in try",
        "loop { try { loop { } } catch { } }",
        "",
    ),
    ("a recursion", "f(1)", "fn f(n) { f(n + 1) }"),
    (
        "a recursion through closures",
        "f([1])",
        "fn f(a) { a.map(|x| f([x])) }",
    ),
    (
        "a wide recursion",
        "f(0)",
        "fn f(n) { if n < 14 { f(n + 1); f(n + 1); f(n + 1); } 0 }",
    ),
    (
        "a string that doubles",
        "let s = \"x\"; loop { s += s; }",
        "",
    ),
    (
        "a string that doubles by interpolation",
        "let s = \"x\"; loop { s = `${s}${s}`; }",
        "",
    ),
    (
        "a padded string",
        "let s = \"x\"; s.pad(1000000000, \"y\"); direct()",
        "",
    ),
    (
        "a padded array",
        "let a = []; a.pad(1000000000, \"y\"); direct()",
        "",
    ),
    (
        "a padded array of arrays",
        "let a = []; a.pad(1000, [1, 2, 3]); direct()",
        "",
    ),
    (
        "an array that grows",
        "let a = []; loop { a.push(a.len); }",
        "",
    ),
    ("an array that doubles", "let a = [1]; loop { a += a; }", ""),
    (
        "an array that holds itself",
        "let a = [1]; loop { a = [a, a]; }",
        "",
    ),
    ("a deep array", "let a = []; loop { a = [a]; }", ""),
    (
        "a deep array, compared",
        "let a = []; for i in 0..1000 { a = [a]; } a == a; loop { a == a; }",
        "",
    ),
    (
        "a deep array, written",
        "let a = []; for i in 0..1000 { a = [a]; } loop { a.to_string(); }",
        "",
    ),
    ("a deep map", "let m = #{}; loop { m = #{ m: m }; }", ""),
    (
        "a map that grows",
        "let m = #{}; let i = 0; loop { m[i.to_string()] = i; i += 1; }",
        "",
    ),
    (
        "a map with long keys",
        "let k = \"\"; k.pad(4000, 'k'); let m = #{}; let i = 0; loop { m[k + i] = 1; i += 1; }",
        "",
    ),
    (
        "copies of a map with long keys",
        "let k = \"\"; k.pad(4000, 'k'); let m = #{}; for i in 0..60 { m[k + i] = 1; }\n\
         f(m, 0)",
        "fn f(m, d) { let a = m; let b = m; let e = m; let g = m; let h = m; f(m, d + 1); a }",
    ),
    (
        "copies of a large array",
        "let a = []; for i in 0..1000 { a.push(i); } f(a)",
        "fn f(a) { let b = a; let c = a; let d = a; let e = a; let g = a; let h = a; f(a); b }",
    ),
    (
        "large literals in a recursion",
        "f()",
        "fn f() { LETS f(); }",
    ),
    (
        "long strings in many variables",
        "f()",
        "fn f() { let s = \"\"; s.pad(4000, 's'); STRINGS f(); }",
    ),
    (
        "long strings in an array",
        "let s = \"\"; s.pad(4000, 's'); let a = []; loop { a.push(s + a.len); }",
        "",
    ),
    (
        "a split into characters",
        "let s = \"\"; s.pad(4000, ','); loop { s.split(\"\"); }",
        "",
    ),
    (
        "many splits",
        "let s = \"\"; s.pad(1000, ','); loop { s.split(\",\"); }",
        "",
    ),
    (
        "a search",
        "let s = \"\"; s.pad(4090, 'a'); let t = s.sub_string(0, 2000) + \"b\"; loop { s.index_of(t); }",
        "",
    ),
    (
        "trims and cases",
        "let s = \"\"; s.pad(4090, 'ß'); loop { s.to_upper(); s.to_lower(); s.trim(); }",
        "",
    ),
    (
        "a huge range",
        "for i in 0..9223372036854775807 { hash(\"x\"); } direct()",
        "",
    ),
    (
        "a huge range by steps",
        "for i in range(0, 9223372036854775807, 1) { hash(\"x\"); } direct()",
        "",
    ),
    ("a number to a power", "let n = 9; loop { n = n ** n; }", ""),
    (
        "a lying comparator",
        "let a = []; for i in 0..500 { a.push(i); } loop { a.sort(|x, y| -1); }",
        "",
    ),
    (
        "a comparator that answers at random",
        "let a = []; for i in 0..500 { a.push(hash(`${i}`)); } loop { a.sort(|x, y| (x ^ y) % 3 - 1); }",
        "",
    ),
    (
        "a comparator that sorts",
        "let a = [3, 2, 1]; loop { a.sort(|x, y| { let b = [2, 1]; b.sort(|p, q| p - q); x - y }); }",
        "",
    ),
    (
        "a filter in a filter",
        "let a = []; for i in 0..900 { a.push(i); } let b = a; let d = a; a.filter(|x| b.filter(|y| d.filter(|z| x == z).len > 0).len > 0); direct()",
        "",
    ),
    (
        "a comparison of large arrays",
        "let a = []; for i in 0..1000 { a.push(1); } loop { a == a; }",
        "",
    ),
    (
        "a search in a large array",
        "let a = []; for i in 0..1000 { a.push(i); } loop { a.index_of(-1); a.contains(-1); }",
        "",
    ),
    (
        "maps merged",
        "let m = #{}; for i in 0..200 { m[`${i}`] = i; } loop { m += m; }",
        "",
    ),
    (
        "maps to text",
        "let m = #{}; for i in 0..200 { m[`${i}`] = i; } loop { `${m}`; }",
        "",
    ),
    (
        "a plan that doubles",
        "let p = direct(); loop { p = p.or(p); }",
        "",
    ),
    (
        "a race that doubles",
        "let p = direct(); loop { p = p.race(p); }",
        "",
    ),
    (
        "a need without end",
        "let p = direct(); loop { p = need(\"ip\", p); p = p.or(direct()); }",
        "",
    ),
    (
        "many logs",
        "loop { log(\"info\", c.host); tag(c.host, c.host); notify(\"warn\", c.host); }",
        "",
    ),
    (
        "many kept values",
        "let s = \"\"; s.pad(1000, 's'); let i = 0; loop { kv_set(`${i}`, s); i += 1; }",
        "",
    ),
    (
        "many rates",
        "let i = 0; loop { rate(`${i}`, 1, \"1d\"); i += 1; }",
        "",
    ),
    (
        "a value beyond its size",
        "let s = \"\"; s.pad(2000, 's'); kv_set(\"a\", s); direct()",
        "",
    ),
    ("all relays, again and again", "loop { relays(); }", ""),
    (
        "all peers, again and again",
        "loop { peers(|p| p.trust > 5); }",
        "",
    ),
    ("nodes to text", "let r = relays(); loop { `${r}`; }", ""),
    (
        "nodes compared",
        "let r = relays(); loop { r == r; r.contains(r[200]); }",
        "",
    ),
    (
        "set look-ups",
        "let s = \"\"; s.pad(4000, \"a.\"); loop { first_set(s); set(\"s\").has(s); }",
        "",
    ),
    (
        "long lists of sets",
        "let l = []; l.pad(1000, \"s\"); loop { first_set(c.host, l); }",
        "",
    ),
    ("an overflow", "let i = 9223372036854775807; i + 1", ""),
    ("a division by zero", "let i = 0; 1 / i", ""),
    (
        "a remainder of the smallest number",
        "let i = -9223372036854775807 - 1; i % -1",
        "",
    ),
    ("a shift too far", "let i = 1; i << 9999", ""),
    (
        "an index out of bounds",
        "let a = [1]; a[-9223372036854775807]",
        "",
    ),
    ("bits out of bounds", "let i = 1; i[99999]", ""),
    (
        "a throw of a large value",
        "let a = []; for i in 0..1000 { a.push(i); } throw a",
        "",
    ),
    (
        "a throw in a comparator",
        "let a = [3, 2, 1]; a.sort(|x, y| { throw \"no\" }); direct()",
        "",
    ),
    ("a negative delay", "let t = -1; direct().delay(t)", ""),
    ("a delay that is no number", "direct().delay(0.0 / 0.0)", ""),
    (
        "nested closures",
        "let a = [1, 2, 3]; let b = a; loop { a.map(|x| b.map(|y| [4].map(|z| x + y + z))); }",
        "",
    ),
];
