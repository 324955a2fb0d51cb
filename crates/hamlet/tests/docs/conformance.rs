//! The page of the conformance kit lists the requirements and cases that the kit has.

use std::fmt::Write as _;

use hamlet_conformance::{Role, Version, cases_of, requirements};

use crate::source::{committed, page as read};

const HEAD: &str = "# Conformance kit

<!-- Generated from the kit's requirements. Don't edit: HAMLET_BLESS=1 cargo test -p hamlet --test docs -->

`hamlet conformance` plays the other side against any implementation of the protocol, Hamlet or not, and says which
requirements it meets. It looks at nothing but the wire, shares no code with Hamlet's own implementation, gives each case a
fresh connection and a bounded time, and can be used as a library (`hamlet_conformance::run`).

## How to use it

1. Give the kit an identity that the implementation under test trusts as a peer: `--tls-cert`, `--tls-key`, and the roots
   of the implementation with `--tls-ca`. The protocol allows mutual TLS only. With `--server-name` the certificate must
   have that DNS name; without it the chain is enough.
2. Say who dials. `--target HOST:PORT` for an implementation that accepts: an owner of v1alpha1, either role of v1alpha2.
   `--listen ADDRESS` for one that dials: a consumer of v1alpha1, either role of v1alpha2. One that waits long before it
   comes back, or never does, is started anew for each case by `--start-cmd CMD`; it finds our address in
   `HAMLET_CONFORMANCE_ADDRESS`.
3. An owner under test needs three services to offer and somebody who changes them: `--publish-cmd CMD` is run as
   `CMD create NAME`, `CMD update NAME` and `CMD delete NAME`, and has to end with 0 when the change is on its way. A
   DELETE of what is gone already must be no error.
4. A consumer under test must accept services under `--service-domain`, at `--service-endpoint`, with `--service-san`.
5. Where v1alpha2's `context` is configured, give it with `--context-file`.

For a Hamlet agent that dials nobody and knows the kit as the peer `kit`:

```sh
hamlet conformance --target 127.0.0.1:7443 --role owner --version v1alpha2 \\
    --tls-cert kit.pem --tls-key kit.key --tls-ca acme/identity/ca.pem --publish-cmd ./publish.sh
```

```sh
#!/bin/sh
# publish.sh: writes a Service into the agent's folder, which it watches.
cd acme || exit
[ \"$1\" = delete ] && { rm -f \"service-$2.yaml\"; exit; }
cat >.new <<END
apiVersion: hamlet.dev/v1
kind: Service
metadata: {name: $2}
spec: {fqdn: $2.acme.example, description: $1, protocol: HTTP, port: 80, backends: [\"127.0.0.1:9\"]}
END
mv .new \"service-$2.yaml\"
```

## How to read the result

| result | meaning |
|---|---|
| `pass` | the requirement is met |
| `FAIL` | a *must* isn't met: the two sides won't work together, or not safely. Exit code 1 |
| `differs` | a *should* isn't met: our reading of what the protocol leaves open. No failure |
| `n/a` | it can't be judged here; the row says why |

The last line is `N passed, N failed, N differ (should), N not applicable`. `-o json` and `-o junit` have the same for
programs (in JUnit `differs` and `n/a` are skipped), `-o markdown` for pages. `--filter OWN-012` runs the cases of one
requirement, `--deadline` and `--quiet` are the patience for what must and what must not come.

An id names version, role and requirement: `A2-OWN-012.3` is the third case of requirement 12 of an owner of v1alpha2.
Sections are those of the protocol text; `T` numbers are threats. What the kit makes of the Go library is on
[a page of its own](conformance-go-reference.md).
";

#[test]
fn the_page_of_the_kit_lists_every_requirement_and_case() {
    let mut page = HEAD.to_owned();
    let mut total = 0;
    for role in [Role::Owner, Role::Consumer] {
        write!(page, "\n## Requirements of {}s\n\n", role.name()).unwrap();
        page += "| number | v1alpha1 | v1alpha2 | section | requirement |\n|---|---|---|---|---|\n";
        for r in requirements().filter(|r| r.role() == role) {
            let level = |v: Version| r.id(v).map_or("", |_| r.level(v).name());
            let (one, two) = (level(Version::V1alpha1), level(Version::V1alpha2));
            writeln!(page, "| {} | {one} | {two} | {} | {} |", r.number, r.section, r.text).unwrap();
        }
        for version in [Version::V1alpha1, Version::V1alpha2] {
            let cases = cases_of(role, version);
            total += cases.len();
            write!(page, "\n### Cases of a {} {}: {}\n\n", version.name(), role.name(), cases.len()).unwrap();
            page += "| id | kind | case |\n|---|---|---|\n";
            for case in cases {
                writeln!(page, "| {} | {} | {} |", case.id, case.kind.name(), case.name).unwrap();
            }
        }
    }
    assert!(total >= 150, "only {total} cases");
    committed("docs/reference/conformance.md", &page);
}

/// Ids of the table rows that say so.
fn rows<'a>(page: &'a str, results: &'a [&str]) -> impl Iterator<Item = &'a str> {
    page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let fits = cells.len() >= 7 && cells[1].starts_with("A1-") && results.contains(&cells[5]);
        fits.then(|| cells[1])
    })
}

#[test]
fn the_page_of_the_go_library_explains_each_failure_and_covers_every_case() {
    let page = read("docs/reference/conformance-go-reference.md");
    let explained = page.split("## Run it again").next().unwrap_or_default();
    let named: Vec<&str> = explained.split([' ', ',', '|']).filter(|w| w.starts_with("A1-")).collect();
    for id in rows(&page, &["FAIL", "differs"]) {
        assert!(named.contains(&id), "{id} is not explained");
    }
    for id in &named {
        assert!(rows(&page, &["FAIL", "differs"]).any(|row| row == *id), "{id} is explained, but good");
    }
    let mut of_the_page: Vec<&str> = rows(&page, &["pass", "FAIL", "differs", "n/a"]).collect();
    let mut of_the_kit: Vec<String> = [Role::Owner, Role::Consumer]
        .into_iter()
        .flat_map(|role| cases_of(role, Version::V1alpha1).into_iter().map(|c| c.id))
        .collect();
    of_the_page.sort_unstable();
    of_the_kit.sort_unstable();
    assert_eq!(of_the_page, of_the_kit, "the kit has changed: run it again");
}
