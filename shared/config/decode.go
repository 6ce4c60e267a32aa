package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Key is one value of a configuration, for documentation and shell completion.
type Key struct {
	Path string // "raft.bind_address"
	Env  string // "DEMIURGE_RAFT_BIND_ADDRESS"
	Type string // of Go, such as "string" or "time.Duration"

	value reflect.Value
}

// place is where a value came from: the file or a variable.
type place struct {
	line, column int
	env          string
}

// decoder fills one target. It walks the document itself, and leaves single values to the library: the
// library forgets the position of an error that a value's own type returns.
type decoder struct {
	file   string
	schema []Key
	places map[string]place
	faults []error
}

// Keys lists every key of a target, sorted by path.
func Keys(target Target) ([]Key, error) { return schemaOf(target) }

func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(path))
}

// schemaOf lists the values of the target. Two keys of one variable are a fault of the program.
func schemaOf(target Target) ([]Key, error) {
	v := reflect.ValueOf(target)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("cannot read a configuration into %T: want a pointer to a struct", target)
	}
	var keys []Key
	if err := collect(v.Elem(), "", &keys); err != nil {
		return nil, err
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.Path, b.Path) })
	seen := map[string]string{}
	for _, k := range keys {
		if other, ok := seen[k.Env]; ok {
			return nil, fmt.Errorf("cannot tell the keys %q and %q apart in the environment: both are %s; rename one", other, k.Path, k.Env)
		}
		seen[k.Env] = k.Path
	}
	return keys, nil
}

func collect(v reflect.Value, prefix string, keys *[]Key) error {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name == "-" || !field.IsExported() {
			continue
		}
		if options == "inline" {
			if err := collect(v.Field(i), prefix, keys); err != nil {
				return err
			}
			continue
		}
		if name == "" {
			return fmt.Errorf("cannot read a configuration into field %s of %s: it has no yaml tag", field.Name, v.Type())
		}
		path := prefix + name
		if section(field.Type) {
			if err := collect(v.Field(i), path+".", keys); err != nil {
				return err
			}
			continue
		}
		*keys = append(*keys, Key{Path: path, Env: envName(path), Type: field.Type.String(), value: v.Field(i)})
	}
	return nil
}

// section reports whether a type is a group of keys; a type that reads itself from text is one value.
func section(t reflect.Type) bool { return t.Kind() == reflect.Struct && !readsText(t) }

func readsText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// document reads the file's text into the target. Wrong text ends it at once; wrong keys and values are
// collected, so that a person sees all of them.
func (d *decoder) document(data []byte) error {
	body, err := d.parse(data)
	if err != nil || body == nil {
		return err
	}
	d.mapping(body, "")
	return nil
}

// parse reads text into one tree of plain values; nil when there is none in it.
func (d *decoder) parse(data []byte) (body ast.Node, err error) {
	if err := bounded(d.file, data); err != nil {
		return nil, err
	}
	defer d.caught(&err, nil)
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, d.wrong("", err, nil)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			return nil, d.at(doc.Body.GetToken(), "", "there is a second document", "keep one: remove the line \"---\" and what follows")
		}
		body = doc.Body
	}
	if body == nil {
		return nil, nil
	}
	return body, d.plain(body)
}

// value reads one node into one value of the target.
func (d *decoder) value(node ast.Node, into any) (err error) {
	defer d.caught(&err, node.GetToken())
	return yaml.NodeToValue(node, into, yaml.Strict())
}

// caught turns a panic of the library into an error: some malformed text makes it panic, and the
// program that reloads its configuration must live on.
func (d *decoder) caught(err *error, tok *token.Token) {
	if r := recover(); r != nil {
		*err = d.at(tok, "", "the text is malformed", "correct the YAML")
	}
}

// plain refuses what is more than mappings, lists and values, and keys without a value.
func (d *decoder) plain(root ast.Node) (err error) {
	ast.Walk(visitor(func(n ast.Node) bool {
		const write = "write the value out"
		switch n := n.(type) {
		case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
			err = d.at(n.GetToken(), "", "anchors, aliases and merge keys are not supported", write)
		case *ast.TagNode:
			err = d.at(n.GetToken(), "", "tags are not supported", write)
		case *ast.MappingKeyNode:
			err = d.at(n.GetToken(), "", "keys with \"?\" are not supported", "write key: value")
		case *ast.MappingValueNode:
			if _, null := n.Value.(*ast.NullNode); null || n.Value == nil {
				err = d.at(n.Key.GetToken(), "", fmt.Sprintf("the key %q has no value", n.Key.GetToken().Value), "give it one, or remove the key")
			}
		}
		return err == nil
	}), root)
	return err
}

type visitor func(ast.Node) bool

// Visit implements ast.Visitor.
func (v visitor) Visit(n ast.Node) ast.Visitor {
	if v(n) {
		return v
	}
	return nil
}

// mapping reads one section. Its known keys are those of the schema below prefix.
func (d *decoder) mapping(node ast.Node, prefix string) {
	var values []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.fault(d.at(node.GetToken(), strings.TrimSuffix(prefix, "."), "keys and values are expected here", "write key: value, indented below"))
		return
	}
	for _, pair := range values {
		name := pair.Key.GetToken().Value
		path := prefix + name
		tok := pair.Value.GetToken()
		i := slices.IndexFunc(d.schema, func(k Key) bool { return k.Path == path })
		switch {
		case i >= 0:
			d.places[path] = place{line: tok.Position.Line, column: tok.Position.Column}
			if err := d.value(pair.Value, d.schema[i].value.Addr().Interface()); err != nil {
				d.fault(d.wrong(path, err, tok))
			}
		case slices.ContainsFunc(d.schema, func(k Key) bool { return strings.HasPrefix(k.Path, path+".") }) && name != "":
			key := pair.Key.GetToken().Position
			d.places[path] = place{line: key.Line, column: key.Column}
			d.mapping(pair.Value, path+".")
		default:
			d.fault(d.at(pair.Key.GetToken(), path, "there is no such key", d.near(prefix, name)))
		}
	}
}

// near proposes what may have been meant.
func (d *decoder) near(prefix, name string) string {
	var names []string
	for _, k := range d.schema {
		if rest, ok := strings.CutPrefix(k.Path, prefix); ok {
			first, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(names, first) {
				names = append(names, first)
			}
		}
	}
	for _, n := range names {
		if distance(n, name) <= 2 {
			return fmt.Sprintf("did you mean %q?", n)
		}
	}
	return "known here are " + strings.Join(names, ", ")
}

// distance is how many single-letter edits lie between two names; long ones are not compared.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// environment lets variables override the file.
func (d *decoder) environment(environ []string) Loaded {
	set := map[string]string{}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, envPrefix) {
			set[name] = value
		}
	}
	var loaded Loaded
	for _, k := range d.schema {
		value := set[k.Env]
		delete(set, k.Env)
		if value == "" {
			continue
		}
		loaded.Overridden = append(loaded.Overridden, k.Env)
		d.places[k.Path] = place{env: k.Env}
		if err := setText(k.value, value); err != nil {
			d.fault(&Error{Env: k.Env, Key: k.Path, Message: message(err), Remedy: "correct it, or unset the variable"})
		}
	}
	for name := range set {
		loaded.Unknown = append(loaded.Unknown, name)
	}
	slices.Sort(loaded.Unknown)
	slices.Sort(loaded.Overridden)
	return loaded
}

// setText reads one value from a variable.
func setText(v reflect.Value, text string) error {
	switch {
	case readsText(v.Type()):
		return v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	case v.Type() == reflect.TypeFor[time.Duration]():
		parsed, err := time.ParseDuration(text)
		v.SetInt(int64(parsed))
		return err
	case v.Kind() == reflect.String:
		v.SetString(text)
		return nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String && !strings.HasPrefix(text, "["):
		parts := strings.Split(text, ",")
		list := reflect.MakeSlice(v.Type(), len(parts), len(parts))
		for i, part := range parts {
			if err := setText(list.Index(i), strings.TrimSpace(part)); err != nil {
				return err
			}
		}
		v.Set(list)
		return nil
	}
	var d decoder
	node, err := d.parse([]byte(text))
	if err != nil || node == nil {
		return err
	}
	fresh := reflect.New(v.Type()) // a list or map replaces the one of the file, as in the file itself
	if err := d.value(node, fresh.Interface()); err != nil {
		return err
	}
	v.Set(fresh.Elem())
	return nil
}

func (d *decoder) fault(err error) { d.faults = append(d.faults, err) }

// at makes an Error at a token.
func (d *decoder) at(tok *token.Token, key string, message string, remedy string) error {
	e := &Error{File: d.file, Key: key, Message: message, Remedy: remedy}
	if tok != nil && tok.Position != nil {
		e.Line, e.Column = tok.Position.Line, tok.Position.Column
	}
	return e
}

// wrong makes an Error of the library's one, at the library's position or else at tok.
func (d *decoder) wrong(key string, err error, tok *token.Token) error {
	var e yaml.Error
	if errors.As(err, &e) && e.GetToken() != nil {
		tok = e.GetToken()
	}
	remedy := "correct the value"
	if key == "" {
		remedy = "correct the YAML"
	}
	return d.at(tok, key, message(err), remedy)
}

// kinds are the kinds of values in the words of people who write files.
var kinds = map[reflect.Kind]string{
	reflect.Int: "a whole number", reflect.Int64: "a whole number", reflect.Uint: "a whole number", reflect.Uint64: "a whole number",
	reflect.Uint16: "a whole number", reflect.Float64: "a number", reflect.String: "a text", reflect.Bool: "true or false",
	reflect.Slice: "a list", reflect.Struct: "keys and values, indented below", reflect.Map: "keys and values, indented below",
}

// message is the library's own words without its excerpt of the file, which could hold a secret.
func message(err error) string {
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) && kinds[wrongType.DstType.Kind()] != "" {
		return "another kind of value is expected: " + kinds[wrongType.DstType.Kind()]
	}
	var e yaml.Error
	if errors.As(err, &e) {
		return e.GetMessage()
	}
	var own *Error
	if errors.As(err, &own) {
		return own.Message
	}
	return err.Error()
}
