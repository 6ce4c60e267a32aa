package httpapi

import (
	"fmt"
	"iter"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Paging is what every list call accepts.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"Most items of one page"`
	Cursor string `query:"cursor" maxLength:"200" doc:"The cursor of the page before"`
}

// pages is a Paging that was read: at most limit items, those after one; "" is before every item.
type pages struct {
	limit int
	after string
}

// paging reads what a list call was given. A cursor is the id of the last item of the page before, so it is read as one:
// what is no id would be before or behind everything, and the answer an empty list that looks like the end.
func paging[T ~string](c *checks, p Paging, parser func(string) (T, error)) pages {
	return pages{limit: p.Limit, after: string(optional(c, "query.cursor", p.Cursor, cursorOf(parser)))}
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

// page takes one page out of records that come in the order of their ids. Items that were removed since do no harm.
func page[R, T any](p pages, records iter.Seq[R], idOf func(R) string, keep func(R) bool, convert func(R) T) api.List[T] {
	out := api.List[T]{Items: []T{}}
	last := ""
	for r := range records {
		key := idOf(r)
		if p.after != "" && key <= p.after || !keep(r) {
			continue
		}
		if len(out.Items) == p.limit {
			out.Cursor = last
			break
		}
		out.Items = append(out.Items, convert(r))
		last = key
	}
	return out
}

// every keeps all records.
func every[R any](R) bool { return true }

// like reports whether a filter lets a value pass; an empty filter lets all.
func like[T ~string](filter, value T) bool { return filter == "" || filter == value }
