package container

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// notice is what somebody is answered whose request does not reach a container.
type notice struct {
	status      int
	title, text string
	header      http.Header
}

// silent is said of a container that does not answer at its address.
var silent = notice{
	status: http.StatusBadGateway, title: "Not answering", text: "This container does not answer at the moment. Please try again shortly.",
	header: http.Header{"Retry-After": {"2"}},
}

// noticeOf says what an answer means.
func noticeOf(a Answer) notice {
	switch a {
	case Anonymous:
		return notice{status: http.StatusUnauthorized, title: "Not logged in", text: "Show an access token of the organization, or log in with a browser."}
	case Missing:
		return notice{status: http.StatusNotFound, title: "Not found", text: "There is no such container."}
	case Away:
		return notice{
			status: http.StatusServiceUnavailable, title: "Down", text: "This container does not serve this at the moment. It comes back when it announces itself.",
			header: http.Header{"Retry-After": {"10"}},
		}
	}
	return notice{status: http.StatusForbidden, title: "Refused", text: "You may not use this container."}
}

// refusal is what is said to this request. A person who opens a page is sent to log in.
func (d *Door) refusal(q question, a Answer) notice {
	n := noticeOf(a)
	if a != Anonymous {
		return n
	}
	if !navigates(q.header) {
		n.header = http.Header{"Www-Authenticate": {`Bearer realm="` + q.origin + `"`}}
		return n
	}
	to, cookie := d.login(q)
	return notice{status: http.StatusSeeOther, header: http.Header{"Location": {to}, "Set-Cookie": {cookie}}}
}

// login is where a browser goes to log in, on the organization's name, with a cookie that says on return where it
// wanted to go, and that proves that it is the same browser.
func (d *Door) login(q question) (to, cookie string) {
	nonce, _, _ := strings.Cut(cookieOf(q.header.Get("Cookie"), d.opts.cookieName(enterCookie)), ".")
	if len(nonce) != len(newNonce()) {
		nonce = newNonce() // else another window of the same browser is on its way too
	}
	back := q.header.Get(AskURI)
	if len(back) > largestReturn || !ownAddress(back) {
		back = "/"
	}
	query := url.Values{"state": {digestOf(nonce)}}
	if q.service != "" {
		query.Set("service", string(q.service))
	}
	return d.opts.origin(q.registry.hostname) + "/containers/" + string(q.container) + "/enter?" + query.Encode(),
		d.opts.cookie(enterCookie, nonce+"."+coding.EncodeToString([]byte(back)), enterLife)
}

// send writes the notice as the whole answer of a connection.
func (n notice) send(to io.Writer, method string) error {
	res := http.Response{StatusCode: n.status, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: &http.Request{Method: method}, Close: true}
	for name, values := range n.header {
		res.Header[name] = values
	}
	res.Header.Set("Cache-Control", "no-store")
	res.Header.Set("X-Content-Type-Options", "nosniff")
	if n.title != "" {
		text := pageOf(res.Header, n.title, n.text)
		res.Body, res.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
	var all bytes.Buffer // one write
	if err := res.Write(&all); err != nil {
		return err
	}
	_, err := to.Write(all.Bytes())
	return err
}

// page writes a small page.
func page(w http.ResponseWriter, status int, title, text string) {
	body := pageOf(w.Header(), title, text)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// pageOf is a small page, and sets what belongs to it in a head. What stands in it is of this program alone.
func pageOf(h http.Header, title, text string) string {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	return "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>" + title + "</title><h1>" + title + "</h1><p>" + text + "</p></html>\n"
}
