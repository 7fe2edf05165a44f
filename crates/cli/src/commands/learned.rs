//! *What is said of a function of another file, by that file's image?*

use pointee_meta::sites::{Size, Summary};

/// `LIB exports NAME as an allocation function (size: argument 1)`.
pub(super) fn in_words(summary: &Summary) -> String {
    let kind = match summary.is_pool() {
        true => "a pool's",
        false => "an allocation function",
    };
    let mut said: Vec<String> = size(summary.size).into_iter().collect();
    let mut argument = |what: &str, index: Option<u8>| {
        said.extend(index.map(|index| format!("{what}: argument {index}")));
    };
    argument("old block", summary.old);
    argument("block stored through", summary.out);
    if summary.is_text() {
        argument("copied", summary.text);
    }
    let kind = match summary.is_text() {
        true => "a function that hands out text",
        false => kind,
    };
    let Summary { library, name, .. } = summary;
    let said = match said.as_slice() {
        [] => String::new(),
        said => format!(" ({})", said.join(", ")),
    };
    format!("{library} exports {name} as {kind}{said}")
}

fn size(size: Size) -> Option<String> {
    Some(match size {
        Size::Unknown => return None,
        Size::Argument {
            index,
            scale: 1,
            add: 0,
        } => format!("size: argument {index}"),
        Size::Argument { index, scale, add } => {
            format!("size: {scale} times argument {index}, and {add}")
        }
        Size::Product(count, unit) => format!("size: argument {count} times argument {unit}"),
        Size::Derived(mask) => {
            let arguments = (0..6).filter(|bit| mask >> bit & 1 != 0);
            let arguments: Vec<String> = arguments.map(|bit: u8| bit.to_string()).collect();
            format!("size: from argument {}", arguments.join(" and "))
        }
    })
}
