//! *How are figures shown?* — as a table in Markdown, numbers flush right.

/// Rows under a head; the first column holds names.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            rows: vec![head.into_iter().map(Into::into).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn print(&self) {
        println!("{}", self.render());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        };
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            for column in 0..columns {
                let cell = row.get(column).map_or("", String::as_str);
                let width = width(column);
                text += &match column {
                    0 => format!("| {cell:<width$} |"),
                    _ => format!(" {cell:>width$} |"),
                };
            }
            text.push('\n');
            if number == 0 {
                for column in 0..columns {
                    let line = "-".repeat(width(column) - usize::from(column > 0));
                    text += &match column {
                        0 => format!("| {line} |"),
                        _ => format!(" {line}: |"),
                    };
                }
                text.push('\n');
            }
        }
        text
    }
}

/// A ratio, or that there is none.
pub(super) fn ratio(value: Option<f64>) -> String {
    value.map_or("failed".to_owned(), |value| format!("{value:.2}"))
}

/// A figure with `digits` after the point, or that there is none.
pub(super) fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or("failed".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["program", "ratio"]);
        table.row(["jq", "1.02"]);
        let expect = "| program | ratio |\n| ------- | ----: |\n| jq      |  1.02 |\n";
        assert_eq!(table.render(), expect);
    }
}
