//! *Is a type one in whatever object, and are disagreements told?*

mod harness;

use harness::{compile, pointee};
use serde_json::Value;
use std::path::Path;

/// `common` is the same in both, `item` and `state` are not.
const SOURCE: &str = r#"
#include <stdlib.h>
struct common { int id; const char *name; unsigned low : 3, high : 5; };
#ifdef WIDE
struct item { long id; struct common *common; };
enum state { OFF, ON, BROKEN };
#else
struct item { int id; int more; struct common *common; };
enum state { OFF, ON };
#endif
struct item *items;
enum state state;
int main(void) { items = calloc(4, sizeof *items); return items[0].common != 0; }
"#;

fn types(options: &[&str], files: &[&Path]) -> Vec<Value> {
    let mut command = pointee();
    command.arg("types").args(options).args(files);
    let output = command.args(["--format", "json"]).output().expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {errors}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    said.as_array().expect("a list").clone()
}

#[test]
fn one_type_of_two_objects() {
    let (_kept, narrow) = compile(SOURCE, &[]);
    let (_kept_too, wide) = compile(SOURCE, &["-DWIDE"]);
    let rows = types(&["--name", "common"], &[&narrow, &wide]);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!(rows[0]["modules"].as_array().map(Vec::len), Some(2));
    let members: Vec<(&str, u64, Option<u64>)> = rows[0]["members"]
        .as_array()
        .expect("members")
        .iter()
        .map(|member| {
            let name = member["name"].as_str().expect("a name");
            let offset = member["offset"].as_u64().expect("an offset");
            (name, offset, member["bit_size"].as_u64())
        })
        .collect();
    let expect = [
        ("id", 0, None),
        ("name", 8, None),
        ("low", 16, Some(3)),
        ("high", 16, Some(5)),
    ];
    assert_eq!(members, expect);
}

#[test]
fn same_name_and_another_layout() {
    let (_kept, narrow) = compile(SOURCE, &[]);
    let (_kept_too, wide) = compile(SOURCE, &["-DWIDE"]);
    let rows = types(&["--conflicts"], &[&narrow, &wide]);
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["enum state", "struct item"], "{rows:#?}");
    assert!(types(&["--conflicts"], &[&narrow, &narrow]).is_empty());
}
