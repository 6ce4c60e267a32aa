// Package config reads the configuration of a program: strict YAML over defaults, then the environment,
// then the program's own validation. Every refusal names file, line, column and what to do.
//
// Precedence, lowest first: what the target holds before (the defaults), the file, the environment. A
// program passes its flags as further entries of the environment: the last entry of a name wins.
//
// The variable of a key is its path in upper case behind DEMIURGE_, with "." and "-" as "_":
// raft.bind_address is DEMIURGE_RAFT_BIND_ADDRESS. Text is taken literally; numbers, booleans, durations
// and lists are read as in the file ("3", "true", "30s", "[a, b]"); a list of strings may also be "a,b".
// An empty variable counts as not set.
//
// What YAML offers beyond plain values is refused, because it hides mistakes: anchors, aliases, merge
// keys, tags, several documents, duplicate keys, and keys without a value.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// envPrefix begins the name of every variable.
const envPrefix = "DEMIURGE_"

// Bounds of a file: far above any real one, far below what makes the parser slow.
const (
	maxBytes = 1 << 20
	maxLine  = 4096
	maxOpen  = 500 // brackets open at once
)

// Target is a pointer to a struct with yaml tags that holds the defaults. Validate is called when all
// sources are read; it returns nil, an error, or several joined, and names keys with Invalid.
type Target interface {
	Validate() error
}

// Loaded tells what Load did beside filling the target.
type Loaded struct {
	Overridden []string // names of the variables that were used, sorted
	Unknown    []string // names of DEMIURGE_ variables that no key has: perhaps of another program, perhaps a typing error
}

// Load fills the target from a file and the environment ("NAME=value" entries, as from os.Environ). An
// empty path means no file. After an error the target is half-filled and of no use.
func Load(path string, target Target, environ []string) (Loaded, error) {
	if path == "" {
		return Decode("", nil, target, environ)
	}
	data, err := read(path)
	if err != nil {
		return Loaded{}, err
	}
	return Decode(path, data, target, environ)
}

// Decode is Load for contents that are already read; name stands for the file in errors.
func Decode(name string, data []byte, target Target, environ []string) (Loaded, error) {
	schema, err := schemaOf(target)
	if err != nil {
		return Loaded{}, err
	}
	d := &decoder{file: name, schema: schema, places: map[string]place{}}
	if err := d.document(data); err != nil {
		return Loaded{}, err
	}
	loaded := d.environment(environ)
	if len(d.faults) > 0 {
		return loaded, errors.Join(d.faults...)
	}
	if err := target.Validate(); err != nil {
		return loaded, d.locate(err)
	}
	return loaded, nil
}

// Error is one thing that is wrong with a configuration.
type Error struct {
	File    string // empty when the value does not come from a file
	Line    int    // 0 when the key is not in the file
	Column  int
	Env     string // the variable that the value comes from
	Key     string // path of the key, empty when the text itself is wrong
	Message string
	Remedy  string
}

// Error prints it as compilers do: file:line:column: what: what to do.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Env != "":
		fmt.Fprintf(&b, "environment variable %s: ", e.Env)
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	case e.File != "":
		fmt.Fprintf(&b, "%s: ", e.File)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, "cannot use key %q: ", e.Key)
	}
	b.WriteString(e.Message)
	if e.Remedy != "" {
		b.WriteString(": " + e.Remedy)
	}
	return b.String()
}

// FieldError is what Validate says of one key; Load adds where the value came from.
type FieldError struct {
	Key     string // path, such as "raft.bind_address"
	Message string
	Remedy  string
}

// Error implements error.
func (e *FieldError) Error() string {
	return (&Error{Key: e.Key, Message: e.Message, Remedy: e.Remedy}).Error()
}

// Invalid is for Validate: the key's path, what is wrong with its value, and what to do.
func Invalid(key string, message string, remedy string) error {
	return &FieldError{Key: key, Message: message, Remedy: remedy}
}

// read takes a regular file of bounded size.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		remedy := "make it readable for this program"
		if errors.Is(err, os.ErrNotExist) {
			remedy = "create it, or name another file"
		}
		return nil, &Error{File: path, Message: fmt.Sprintf("cannot read the configuration (%v)", errors.Unwrap(err)), Remedy: remedy}
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, &Error{File: path, Message: "cannot read the configuration (it is a directory)", Remedy: "name a file"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, &Error{File: path, Message: fmt.Sprintf("cannot read the configuration (%v)", err), Remedy: "make it readable for this program"}
	}
	return data, nil
}

// bounded refuses text that is out of all proportion before the parser sees it: the time that the parser
// takes grows with the square of the depth.
func bounded(file string, data []byte) error {
	if len(data) > maxBytes {
		return &Error{File: file, Message: fmt.Sprintf("the configuration is longer than %d bytes", maxBytes), Remedy: "remove what does not belong there"}
	}
	number, open := 0, 0
	for line := range bytes.Lines(data) {
		number++
		if len(line) > maxLine {
			return &Error{File: file, Line: number, Column: maxLine, Message: fmt.Sprintf("the line is longer than %d bytes", maxLine), Remedy: "break it"}
		}
		for i, c := range line {
			switch c {
			case '[', '{':
				open++
			case ']', '}':
				open = max(0, open-1)
			}
			if open > maxOpen {
				return &Error{File: file, Line: number, Column: i + 1, Message: fmt.Sprintf("more than %d brackets are open", maxOpen), Remedy: "close them"}
			}
		}
		// "- - - -" and "? ? ? ?" nest without brackets, one level every two bytes.
		if n := max(bytes.Count(line, []byte("- ")), bytes.Count(line, []byte("? "))); n > maxOpen {
			return &Error{File: file, Line: number, Column: 1, Message: fmt.Sprintf("more than %d list marks on one line", maxOpen), Remedy: "write one list"}
		}
	}
	return nil
}

// locate gives the errors of Validate the places their values came from.
func (d *decoder) locate(err error) error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, d.locate(e))
		}
		return errors.Join(out...)
	}
	var field *FieldError
	if !errors.As(err, &field) {
		return &Error{File: d.file, Message: err.Error()}
	}
	out := &Error{File: d.file, Key: field.Key, Message: field.Message, Remedy: field.Remedy}
	at, exact := d.place(field.Key)
	out.Line, out.Column, out.Env = at.line, at.column, at.env
	if at.env != "" {
		out.File = ""
	}
	if !exact && slices.ContainsFunc(d.schema, func(k Key) bool { return k.Path == field.Key }) {
		out.Message += " (it is not set)"
		out.Remedy = strings.TrimPrefix(out.Remedy+", or set "+envName(field.Key), ", or ")
	}
	return out
}

// place finds where a key's value came from; of an element of a list, where the list did; of a key that
// is not there, where the section around it is.
func (d *decoder) place(key string) (at place, exact bool) {
	for path := key; path != ""; {
		if at, ok := d.places[path]; ok {
			return at, path == key || strings.HasPrefix(key[len(path):], "[")
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	return place{}, false
}
