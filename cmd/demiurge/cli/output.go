package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// print writes a result: the API's own body as JSON, or what table draws.
func (a *app) print(body any, draw func(w io.Writer) error) error {
	if a.output == "json" {
		return printJSON(a.Stdout, body)
	}
	return draw(a.Stdout)
}

func printJSON(w io.Writer, body any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(body)
}

// grid draws rows below a heading, aligned. Cells are cleaned: what others named cannot move the cursor
// or forge a line.
type grid struct {
	rows [][]string
}

func newGrid(heading ...string) *grid { return &grid{rows: [][]string{heading}} }

func (g *grid) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = clean(fmt.Sprint(c))
		if row[i] == "" {
			row[i] = "-"
		}
	}
	g.rows = append(g.rows, row)
}

func (g *grid) draw(w io.Writer) error {
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	for _, row := range g.rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return writeTrimmed(w, text.String())
}

// fields draws names and values, one pair a line. Pairs without a value are left out.
func fields(w io.Writer, pairs ...any) error {
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if value := clean(fmt.Sprint(pairs[i+1])); value != "" {
			fmt.Fprintf(tw, "%v\t%s\n", pairs[i], value)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return writeTrimmed(w, text.String())
}

// writeTrimmed drops the padding that tabwriter leaves at the end of lines.
func writeTrimmed(w io.Writer, text string) error {
	for line := range strings.Lines(text) {
		if _, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// clean replaces control characters, so that a name or message stays one cell.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if id.Hidden(r) {
			return ' '
		}
		return r
	}, s)
}

// stamp is a time in a table, in UTC; nil and zero are empty.
func stamp(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// number is empty for zero, so that absent things look absent.
func number[T int | uint64](n T) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}

// millis prints measured milliseconds with three digits that matter.
func millis(ms float64) string {
	switch {
	case ms == 0:
		return "-"
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	case ms < 100:
		return strconv.FormatFloat(ms, 'f', 1, 64)
	}
	return strconv.FormatFloat(ms, 'f', 0, 64)
}

func percent(part float64) string { return strconv.Itoa(int(math.Round(part*100))) + "%" }

func ratio[T int | uint64](part, whole T) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
