package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"strings"
)

// style is part of the page; the policy below allows it by its digest, and nothing else at all.
const style = `
body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem;color:#1c2733;background:#fbfcfd}
h1{font-size:1.6rem;overflow-wrap:anywhere}
dt{color:#5b6b7b;font-size:.85rem;margin-top:1rem}
dd{margin:0;font-family:ui-monospace,monospace;overflow-wrap:anywhere}
`

const pageHTML = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Name}}</title>
<style>{{.Style}}</style>
</head>
<body>
<h1>{{.Name}}</h1>
<dl>
<dt>Organization</dt><dd id="organization">{{.OrganizationID}}</dd>
<dt>Gateway</dt><dd id="gateway">{{.GatewayID}}</dd>
<dt>Epoch</dt><dd id="epoch">{{.Epoch}}</dd>
</dl>
</body>
</html>
`

// Front is the JSON form of the front page: whom this name belongs to and who answered.
type Front struct {
	OrganizationID string `json:"organization_id"`
	Name           string `json:"name"`
	Hostname       string `json:"hostname"`
	GatewayID      string `json:"gateway_id"`
	Epoch          uint64 `json:"epoch"`
	BootID         string `json:"boot_id"`
}

// page is the front page of an organization's host name.
type page struct {
	gateway *Gateway
	html    *template.Template
	policy  string
}

func newPage(g *Gateway) (*page, error) {
	html, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(style))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return &page{gateway: g, html: html, policy: policy}, nil
}

// serve answers with HTML, or with JSON where that is what is asked for.
func (p *page) serve(w http.ResponseWriter, r *http.Request) {
	serving := p.gateway.tenant.serving()
	if serving == nil || serving.Epoch != epochOf(r) {
		p.gateway.refuse(w, r, stale(r, serving))
		return
	}
	front := Front{
		OrganizationID: string(serving.Organization), Name: serving.Name, Hostname: serving.Hostname,
		GatewayID: string(p.gateway.opts.Gateway), Epoch: uint64(serving.Epoch), BootID: p.gateway.boot,
	}
	h := w.Header()
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", p.policy)
	if wantsJSON(r.Header.Values("Accept")) {
		writeJSON(w, http.StatusOK, "application/json", front)
		return
	}
	if front.Name == "" {
		front.Name = front.OrganizationID
	}
	var out bytes.Buffer
	err := p.html.Execute(&out, struct {
		Front
		Style template.CSS
	}{front, style})
	if err != nil {
		p.gateway.refuse(w, r, err)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}

// wantsJSON reports whether JSON is asked for and HTML is not: a browser accepts both.
func wantsJSON(accept []string) bool {
	json := false
	for _, kind := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, _ = strings.Cut(kind, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/html":
			return false
		case "application/json":
			json = true
		}
	}
	return json
}
