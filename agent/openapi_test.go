package agent_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/tenantapi"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

var update = flag.Bool("update", false, "write the OpenAPI document of organizations' host names")

// document is where the agent has it from.
const document = "tenantapi/openapi.json"

// The document is made here, from the table that is served, so that the agent need not carry what makes it.
func TestTheOpenAPIDocumentIsTheTable(t *testing.T) {
	h := prepareHost(t)
	a, err := agent.New(agent.Options{Config: h.config, Logger: logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Stop(t.Context()) }()
	made, err := json.MarshalIndent(openAPI(t, a.TenantRoutes()), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(document, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(filepath.FromSlash(document))
	if err != nil || !bytes.Equal(kept, made) {
		t.Errorf("%s is not of the present table (%v): go test ./agent -run OpenAPI -update", document, err)
	}
}

var parameter = regexp.MustCompile(`\{([a-z_]+)\}`)

func openAPI(t *testing.T, rows []tenantapi.Route) *huma.OpenAPI {
	t.Helper()
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	out := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{Title: "Demiurge: organizations' host names", Version: "1", Description: "What the agent answers on https://org-<uuid>.<domain>. " +
			"Errors are application/problem+json with a stable code; those of the OAuth endpoints are as RFC 6749 says. While the agent is away nginx answers with 503 and a page."},
		Components: &huma.Components{Schemas: schemas, SecuritySchemes: map[string]*huma.SecurityScheme{
			"token":   {Type: "http", Scheme: "bearer", Description: "An access token of the organization, or a token of the platform's user"},
			"client":  {Type: "http", Scheme: "basic", Description: "The id and the secret of an OAuth client; or in the body"},
			"hosting": {Type: "http", Scheme: "bearer", Description: "The hosting token of the container in the path"},
			"session": {Type: "apiKey", In: "cookie", Name: "__Host-demiurge-session", Description: "A browser that has logged in"},
		}},
		Paths: map[string]*huma.PathItem{},
	}
	for _, row := range rows {
		if row.Doc.Summary == "" {
			t.Errorf("%s %s has no summary", row.Method, row.Path)
		}
		op := &huma.Operation{Method: row.Method, Path: row.Path, Summary: row.Doc.Summary, OperationID: operationID(row), Responses: map[string]*huma.Response{}}
		op.Extensions = map[string]any{"x-caller": string(row.Caller)}
		for _, name := range parameter.FindAllStringSubmatch(row.Path, -1) {
			op.Parameters = append(op.Parameters, &huma.Param{Name: name[1], In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
		}
		if row.Keyed {
			longest := 200
			op.Parameters = append(op.Parameters, &huma.Param{
				Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: &longest},
				Description: "The same key answers with the first result for 24 h; with another body it is a conflict",
			})
		}
		describe(schemas, op, row)
		out.AddOperation(op)
	}
	return out
}

// describe says what a row takes and answers.
func describe(schemas huma.Registry, op *huma.Operation, row tenantapi.Route) {
	doc := row.Doc
	for _, f := range doc.Query {
		op.Parameters = append(op.Parameters, &huma.Param{Name: f.Name, In: "query", Required: f.Required, Description: f.About, Schema: &huma.Schema{Type: huma.TypeString}})
	}
	if len(doc.Form) > 0 {
		form := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{}}
		for _, f := range doc.Form {
			form.Properties[f.Name] = &huma.Schema{Type: huma.TypeString, Description: f.About}
			if f.Required {
				form.Required = append(form.Required, f.Name)
			}
		}
		op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/x-www-form-urlencoded": {Schema: form}}}
	}
	if doc.Takes != nil {
		op.RequestBody = &huma.RequestBody{Required: !doc.Optional, Content: body(schemas, doc.Takes, "application/json")}
	}
	if row.Caller == tenantapi.Member {
		op.Extensions["x-action"] = row.Action.String()
		doc.Shows = append([]string{"token", "session"}, doc.Shows...)
	}
	for _, scheme := range doc.Shows {
		op.Security = append(op.Security, map[string][]string{scheme: {}})
	}
	for _, a := range answers(row) {
		answer(schemas, op, a)
	}
	if doc.Leads {
		op.Responses[strconv.Itoa(status(doc))].Headers = map[string]*huma.Param{"Location": {Schema: &huma.Schema{Type: huma.TypeString}}}
	}
}

// status is that of the answer when all is well.
func status(d tenantapi.Doc) int { return cmp.Or(d.Status, http.StatusOK) }

// answers are all those of a row.
func answers(row tenantapi.Route) []tenantapi.Answer {
	problem := func(codes ...fault.Code) (out []tenantapi.Answer) {
		for _, code := range codes {
			out = append(out, tenantapi.Answer{Status: fault.Codes()[code], Codes: []fault.Code{code}})
		}
		return out
	}
	out := []tenantapi.Answer{{Status: status(row.Doc), Body: row.Doc.Gives}}
	// Of every row: a request that came in another way, for what is not here, or while the agent or its disk is away.
	out = append(out, problem(fault.Forbidden, fault.NotFound, fault.StaleEpoch, fault.Internal, fault.StorageLow)...)
	out = append(out, tenantapi.Answer{Status: http.StatusServiceUnavailable, Kind: "text/html"})
	if row.Caller == tenantapi.Member {
		out = append(out, problem(fault.Unauthenticated)...)
	}
	if row.Doc.Takes != nil || row.Doc.Query != nil || row.Doc.Form != nil || strings.Contains(row.Path, "{") {
		out = append(out, problem(fault.InvalidRequest)...)
	}
	if row.Doc.Takes != nil {
		out = append(out, problem(fault.TooLarge)...)
	}
	if row.Keyed {
		out = append(out, problem(fault.Conflict, fault.Superseded, fault.RateLimited)...)
	}
	return append(out, row.Doc.Also...)
}

// answer adds one to those of its status.
func answer(schemas huma.Registry, op *huma.Operation, a tenantapi.Answer) {
	at := strconv.Itoa(a.Status)
	r := op.Responses[at]
	if r == nil {
		r = &huma.Response{Description: http.StatusText(a.Status)}
		op.Responses[at] = r
	}
	content := map[string]*huma.MediaType{}
	switch {
	case len(a.Codes) > 0:
		content = body(schemas, api.Problem{}, api.ProblemContentType)
		codes, _ := r.Extensions["x-codes"].([]fault.Code)
		for _, code := range a.Codes {
			if !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
		r.Extensions = map[string]any{"x-codes": codes}
	case a.Body != nil:
		content = body(schemas, a.Body, "application/json")
	case a.Kind != "":
		content[a.Kind] = &huma.MediaType{}
	}
	if len(content) > 0 && r.Content == nil {
		r.Content = map[string]*huma.MediaType{}
	}
	maps.Copy(r.Content, content)
}

func body(schemas huma.Registry, of any, kind string) map[string]*huma.MediaType {
	typ := reflect.TypeOf(of)
	return map[string]*huma.MediaType{kind: {Schema: schemas.Schema(typ, true, typ.Name())}}
}

// operationID is made of method and path, which no two rows share.
func operationID(row tenantapi.Route) string {
	parts := strings.FieldsFunc(row.Path, func(r rune) bool { return strings.ContainsRune("/{}._-", r) })
	return strings.Join(slices.Concat([]string{strings.ToLower(row.Method)}, parts), "-")
}
