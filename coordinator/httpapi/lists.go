package httpapi

import (
	"iter"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// Paging is what every list call accepts.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"Most items of one page"`
	Cursor string `query:"cursor" maxLength:"200" doc:"The cursor of the page before"`
}

// page takes one page out of records that come in the order of their ids: those after the cursor, which
// is the id of the last item of the page before. Items that were removed since do no harm.
func page[R, T any](p Paging, records iter.Seq[R], idOf func(R) string, keep func(R) bool, convert func(R) T) api.List[T] {
	out := api.List[T]{Items: []T{}}
	last := ""
	for r := range records {
		key := idOf(r)
		if p.Cursor != "" && key <= p.Cursor || !keep(r) {
			continue
		}
		if len(out.Items) == p.Limit {
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
