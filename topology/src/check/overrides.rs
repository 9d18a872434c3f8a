//! Settings from the command line, put into the tree before it is read.

use crate::spec::{Entry, FileText, Node, Override, Problems, Span, Spanned, Value, parse};

/// Puts each override where its path leads. What an override cannot do is a problem at the top of the file.
pub(crate) fn apply(root: &mut Node, overrides: &[Override], problems: &mut Problems) {
    for setting in overrides {
        let source = FileText::new("override", setting.value.clone());
        let mut own = Problems::default();
        let value = parse(&source, &mut own).map_or(Value::Null, |node| node.value);
        let fault = if !own.is_empty() {
            Some("its value is not YAML")
        } else if !set(root, &setting.path, &value) {
            Some("its path leads through something that is no mapping")
        } else {
            None
        };
        if let Some(fault) = fault {
            let message = format!("the setting `{}` given on the command line is wrong: {fault}", setting.path);
            let hint = "write `PATH=VALUE`, such as `ledger.scheme=solo`";
            problems.add("override", Span::default(), message, hint);
        }
    }
}

/// Sets `path` below `node`; `false` if it leads through something that is no mapping.
fn set(node: &mut Node, path: &str, value: &Value) -> bool {
    if node.value == Value::Null {
        node.value = Value::Map(Vec::new());
    }
    let span = node.span;
    let Value::Map(entries) = &mut node.value else { return false };
    // A name with dots in it, such as a topic's, is taken whole where the file has it.
    let fits = |key: &str| path == key || path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    let longest = entries.iter().filter(|entry| fits(&entry.key.value)).map(|entry| entry.key.value.len()).max();
    let length = longest.unwrap_or_else(|| path.find('.').unwrap_or(path.len()));
    let (key, rest) = path.split_at(length);
    if key.is_empty() {
        return false;
    }
    let index = entries.iter().position(|entry| entry.key.value == key).unwrap_or_else(|| {
        let value = Node { span, value: Value::Null };
        entries.push(Entry { key: Spanned::new(key.to_owned(), span), value });
        entries.len() - 1
    });
    let Some(entry) = entries.get_mut(index) else { return false };
    match rest.strip_prefix('.') {
        Some(rest) => set(&mut entry.value, rest, value),
        None => {
            respan(&mut entry.value, value);
            true
        }
    }
}

/// Replaces what a node is; problems with it point at what it replaced.
fn respan(node: &mut Node, value: &Value) {
    fn at(value: &Value, span: Span) -> Value {
        match value {
            Value::List(items) => {
                Value::List(items.iter().map(|it| Node { span, value: at(&it.value, span) }).collect())
            }
            Value::Map(entries) => Value::Map(
                entries
                    .iter()
                    .map(|entry| Entry {
                        key: Spanned::new(entry.key.value.clone(), span),
                        value: Node { span, value: at(&entry.value.value, span) },
                    })
                    .collect(),
            ),
            other => other.clone(),
        }
    }
    node.value = at(value, node.span);
}
