package httpapi

import (
	"fmt"
	"iter"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/api"
)

// Paging is what every list call accepts.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"Most items of one page"`
	Cursor string `query:"cursor" maxLength:"200" doc:"The cursor of the page before"`
}

// pages is a Paging that was read: at most limit items, those after one; "" is before every item.
type pages[K ~string] struct {
	limit int
	after K
}

// paging reads what a list call was given. A cursor is the id of the last item of the page before, so it is read as one:
// what is no id would be before or behind everything, and the answer an empty list that looks like the end.
func paging[K ~string](c *checks, p Paging, parser func(string) (K, error)) pages[K] {
	return pages[K]{limit: p.Limit, after: optional(c, "query.cursor", p.Cursor, cursorOf(parser))}
}

// cursorOf reads a cursor and says what to send instead of one that no page has answered with.
func cursorOf[T any](parser func(string) (T, error)) func(string) (T, error) {
	return func(raw string) (T, error) {
		v, err := parser(raw)
		if err != nil {
			return v, fmt.Errorf("cannot use %.80q as a cursor: send the one that the page before answered with, as it is, or none for the first page", raw)
		}
		return v, nil
	}
}

// page takes one page out of the records after one, which come in the order of their ids. A page costs its own records and
// what keep leaves out, wherever in the list it is. Items that were removed since do no harm.
func page[K ~string, R, T any](p pages[K], after func(K) iter.Seq[R], idOf func(R) K, keep func(R) bool, convert func(R) T) api.List[T] {
	out := api.List[T]{Items: []T{}}
	var last K
	for r := range after(p.after) {
		if !keep(r) {
			continue
		}
		if len(out.Items) == p.limit {
			out.Cursor = string(last)
			break
		}
		out.Items = append(out.Items, convert(r))
		last = idOf(r)
	}
	return out
}

// watching is a list of the state as page wants it.
func watching[K ~string, R any](ws state.WatchSet, list func(state.WatchSet, K) iter.Seq[R]) func(K) iter.Seq[R] {
	return func(after K) iter.Seq[R] { return list(ws, after) }
}

// every keeps all records.
func every[R any](R) bool { return true }

// like reports whether a filter lets a value pass; an empty filter lets all.
func like[T ~string](filter, value T) bool { return filter == "" || filter == value }
