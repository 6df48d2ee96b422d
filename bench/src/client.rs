//! A plain client of Postgres's protocol over the unix socket: it blocks, sends bytes that were made beforehand, and looks at rows
//! where they lie. What a client library does for each row would be measured with the server otherwise.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::database::Database;

/// How parameters and columns are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}

impl Format {
    fn code(self) -> i16 {
        match self {
            Self::Text => 0,
            Self::Binary => 1,
        }
    }
}

/// A session.
pub struct Client {
    stream: UnixStream,
    backend: u32,
    /// Bytes received; those from `start` on are not looked at yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Bytes that run a prepared statement with its parameters.
#[derive(Clone)]
pub struct Request(Vec<u8>);

/// A row of an answer.
pub struct Row<'a>(&'a [u8]);

impl<'a> Row<'a> {
    /// A column as it was sent; `None` is NULL.
    pub fn column(&self, number: usize) -> Option<&'a [u8]> {
        let mut rest = &self.0[2..];
        for _ in 0..number {
            rest = &rest[4 + length(rest).unwrap_or(0)..];
        }
        length(rest).map(|length| &rest[4..4 + length])
    }

    /// A column in text format as a number.
    pub fn number(&self, number: usize) -> Result<f64, Failure> {
        let text = std::str::from_utf8(self.column(number).ok_or("a column is NULL")?)?;
        Ok(text.parse()?)
    }
}

/// Of the column that begins here.
fn length(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_be_bytes(*bytes.first_chunk().expect("a length"));
    usize::try_from(length).ok()
}

/// A message to the server, around its body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind], &length[..], body].concat()
}

fn sync() -> Vec<u8> {
    message(b'S', &[])
}

impl Request {
    /// Runs what [`Client::prepare`] prepared under `name`. Parameters and all columns have the same format.
    pub fn new(name: &str, format: Format, parameters: &[&[u8]]) -> Self {
        Self::with_nulls(name, format, &parameters.iter().copied().map(Some).collect::<Vec<_>>())
    }

    /// The same, where a parameter may be NULL.
    pub fn with_nulls(name: &str, format: Format, parameters: &[Option<&[u8]>]) -> Self {
        let mut bind = [b"\0", name.as_bytes(), b"\0\0\x01"].concat();
        bind.extend(format.code().to_be_bytes());
        bind.extend((parameters.len() as u16).to_be_bytes());
        for parameter in parameters {
            bind.extend(parameter.map_or(-1, |bytes| bytes.len() as i32).to_be_bytes());
            bind.extend(parameter.unwrap_or_default());
        }
        bind.extend([0, 1]);
        bind.extend(format.code().to_be_bytes());
        // RowDescription was seen when it was prepared.
        let execute = message(b'E', &[0; 5]);
        Self([message(b'B', &bind), execute, sync()].concat())
    }
}

impl Client {
    /// A session of the superuser.
    pub fn connect(database: &Database) -> Result<Self, Failure> {
        let cluster = database.cluster();
        let socket = cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port()));
        let mut client = Self {
            stream: UnixStream::connect(socket)?,
            backend: 0,
            buffer: vec![0; 1 << 16],
            start: 0,
            end: 0,
        };
        let parameters = format!("user\0postgres\0database\0{}\0\0", database.name());
        let mut startup = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
        startup.extend(196_608_u32.to_be_bytes());
        startup.extend(parameters.as_bytes());
        client.stream.write_all(&startup)?;
        let mut backend = 0;
        client.answer(|kind, body| {
            if kind == b'K' {
                backend = u32::from_be_bytes(*body.first_chunk().expect("a process id"));
            }
        })?;
        client.backend = backend;
        Ok(client)
    }

    /// The server's process for this session.
    pub fn backend(&self) -> u32 {
        self.backend
    }

    /// Prepares a statement.
    pub fn prepare(&mut self, name: &str, statement: &str) -> Result<(), Failure> {
        let parse = [name.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
        self.stream.write_all(&[message(b'P', &parse), sync()].concat())?;
        self.answer(|_, _| ())
    }

    /// Runs a prepared statement and looks at its rows. Returns how many there were.
    pub fn run(&mut self, request: &Request, mut look_at: impl FnMut(Row<'_>)) -> Result<usize, Failure> {
        self.stream.write_all(&request.0)?;
        let mut rows = 0;
        self.answer(|kind, body| {
            if kind == b'D' {
                rows += 1;
                look_at(Row(body));
            }
        })?;
        Ok(rows)
    }

    /// The same, timed from the first byte sent to the last one received.
    pub fn time(&mut self, request: &Request) -> Result<Duration, Failure> {
        let start = Instant::now();
        self.run(request, |_| ())?;
        Ok(start.elapsed())
    }

    /// Prepares and runs a statement with parameters, once. Looks at its rows as text.
    pub fn query(
        &mut self,
        statement: &str,
        parameters: &[&str],
        look_at: impl FnMut(Row<'_>),
    ) -> Result<usize, Failure> {
        self.prepare("", statement)?;
        let parameters: Vec<&[u8]> = parameters.iter().map(|parameter| parameter.as_bytes()).collect();
        self.run(&Request::new("", Format::Text, &parameters), look_at)
    }

    /// Reads messages up to the one that says the server is ready again.
    fn answer(&mut self, mut look_at: impl FnMut(u8, &[u8])) -> Result<(), Failure> {
        let mut error = None;
        loop {
            let (kind, from, to) = self.receive()?;
            let body = &self.buffer[from..to];
            match kind {
                b'Z' => return error.map_or(Ok(()), |error: String| Err(error.into())),
                b'E' => error = Some(String::from_utf8_lossy(body).replace('\0', " ")),
                _ => look_at(kind, body),
            }
        }
    }

    /// The next message: its kind, and where in the buffer its body is.
    fn receive(&mut self) -> Result<(u8, usize, usize), Failure> {
        loop {
            let held = &self.buffer[self.start..self.end];
            if let (Some(kind), Some(length)) = (held.first(), held.get(1..5)) {
                let kind = *kind;
                let length = u32::from_be_bytes(*length.first_chunk().expect("four bytes")) as usize;
                if held.len() > length {
                    let body = (kind, self.start + 5, self.start + 1 + length);
                    self.start = body.2;
                    return Ok(body);
                }
                if self.buffer.len() <= length {
                    self.buffer.resize(2 * length, 0);
                }
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let read = self.stream.read(&mut self.buffer[self.end..])?;
            if read == 0 {
                return Err("the server ended the session".into());
            }
            self.end += read;
        }
    }
}

/// Values as an array in text format.
pub fn text_array<T: AsRef<str>>(values: &[T]) -> Vec<u8> {
    let quoted = |value: &T| format!("\"{}\"", value.as_ref().replace('\\', "\\\\").replace('"', "\\\""));
    let values: Vec<String> = values.iter().map(quoted).collect();
    format!("{{{}}}", values.join(",")).into_bytes()
}

/// Values as an array in binary format, of elements of this type.
pub fn binary_array(element: u32, values: &[Vec<u8>]) -> Vec<u8> {
    let header = [1, 0, element, values.len() as u32, 1];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    for value in values {
        bytes.extend((value.len() as u32).to_be_bytes());
        bytes.extend(value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found() {
        let mut row = vec![0, 3];
        row.extend([0, 0, 0, 2, b'4', b'2', 255, 255, 255, 255, 0, 0, 0, 1, b'x']);
        let row = Row(&row);
        assert_eq!(row.column(0), Some(&b"42"[..]));
        assert_eq!((row.column(1), row.column(2)), (None, Some(&b"x"[..])));
        assert!((row.number(0).expect("a number") - 42.0).abs() < 1e-9);
    }

    #[test]
    fn arrays_are_written() {
        assert_eq!(text_array(&[r#"{"a": "\"}"#]), br#"{"{\"a\": \"\\\"}"}"#);
        assert_eq!(binary_array(25, &[b"ab".to_vec()]).len(), 20 + 4 + 2);
    }
}
