package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows that a command waits, and for what: a spinner on a terminal, a line for every change
// elsewhere. It writes to standard error, so that results stay alone on standard output.
type progress struct {
	app  *app
	done chan struct{} // nil without a terminal
	end  sync.WaitGroup

	mu   sync.Mutex // guards what follows: the ticker and the command both draw
	bar  *progressbar.ProgressBar
	text string
}

// wait starts to show what is waited for. The caller calls stop before it prints a result.
func (a *app) wait(text string) *progress {
	p := &progress{app: a}
	if a.Terminal {
		p.bar = progressbar.NewOptions(-1,
			progressbar.OptionSetWriter(a.Stderr),
			progressbar.OptionSpinnerType(14),
			progressbar.OptionSetSpinnerChangeInterval(0), // drawn by tick, which stop waits for
			progressbar.OptionSetElapsedTime(true),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetDescription(text),
		)
		p.done = make(chan struct{})
		p.end.Go(p.tick)
	}
	p.say(text)
	return p
}

// say changes what is waited for. The same text again shows nothing new.
func (p *progress) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == p.text {
		return
	}
	p.text = text
	if p.bar != nil {
		p.bar.Describe(text)
		return
	}
	fmt.Fprintln(p.app.Stderr, text)
}

// stop removes the spinner. It may be called again.
func (p *progress) stop() {
	if p.done == nil {
		return
	}
	close(p.done)
	p.end.Wait()
	p.done = nil
	_ = p.bar.Finish()
}

func (p *progress) tick() {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
			p.mu.Lock()
			_ = p.bar.Add(1)
			p.mu.Unlock()
		}
	}
}
