package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/iterait/shepherd/client"
)

func topCommand(c Config) *cobra.Command {
	return withTarget(c, func(t *Target) *cobra.Command {
		var once bool
		cmd := &cobra.Command{
			Use:   "top",
			Short: "Watch the sheep, the queue and the GPUs",
			Long: "Shows the sheep, the head of the queue with the reasons why jobs wait, and the GPUs,\n" +
				"updated live. q quits; the arrow keys, Page Up and Page Down scroll (↓3: three more\n" +
				"lines); a narrow terminal shows fewer columns. Without a terminal, or with --once, it\n" +
				"prints the current state and ends.",
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return t.runTaking(cmd, func(ctx context.Context, s *session) error {
					if once || !isTerminal(s.out) || !isTerminal(s.in) {
						return s.interruptible(ctx, s.printTop)
					}
					return s.watchTop(ctx)
				})
			},
		}
		cmd.Flags().BoolVar(&once, "once", false, "print the current state and end")
		return cmd
	})
}

// printTop prints how the flock is.
func (s *session) printTop(ctx context.Context) error {
	who, err := s.GetSessionWithResponse(ctx)
	if err != nil {
		return err
	}
	gpus := who.JSON200 != nil && who.JSON200.Tenant == nil // a tenant is shown none
	v := topView{now: time.Now}
	for change, err := range client.FollowFlock(ctx, s.ClientWithResponses) {
		switch {
		case err != nil:
			return err
		case change.Lost != nil:
			return change.Lost
		}
		v.take(change)
		if v.flock != nil && (v.gpus != nil || !gpus) {
			break
		}
	}
	for _, line := range v.lines(0) {
		if _, err := fmt.Fprintln(s.out, line.text()); err != nil {
			return err
		}
	}
	return nil
}

// watchTop shows how the flock is until the user has enough, or the daemon refuses.
func (s *session) watchTop(ctx context.Context) error {
	following, stop := context.WithCancel(ctx)
	defer stop()
	model := &topModel{view: topView{now: time.Now, colour: os.Getenv("NO_COLOR") == ""}, width: 80, height: 24}
	program := tea.NewProgram(model, tea.WithContext(ctx), tea.WithInput(s.in), tea.WithOutput(s.out), tea.WithoutSignalHandler())
	var refused error
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		for change, err := range client.FollowFlock(following, s.ClientWithResponses) {
			if err != nil {
				refused = err
				break
			}
			program.Send(change)
		}
		program.Quit()
	}()
	ended := make(chan struct{})
	interrupted := make(chan struct{})
	go func() {
		defer close(interrupted)
		select {
		case <-s.interrupts:
			program.Quit()
		case <-ended:
		}
	}()
	_, err := program.Run()
	close(ended)
	stop()
	<-followed
	<-interrupted
	if errors.Is(refused, context.Canceled) {
		refused = nil
	}
	return cmp.Or(refused, err)
}

// topModel is top on a terminal.
type topModel struct {
	view          topView
	width, height int
	first         int // line of those that scroll
}

// tick is for times that run.
type tick struct{}

func ticking() tea.Cmd { return tea.Tick(time.Second, func(time.Time) tea.Msg { return tick{} }) }

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return ticking() }

// Update implements tea.Model.
func (m *topModel) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch message := message.(type) {
	case client.FlockChange:
		m.view.take(message)
	case tea.WindowSizeMsg:
		m.width, m.height = message.Width, message.Height
	case tick:
		return m, ticking()
	case tea.KeyPressMsg:
		switch message.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		case "down", "j":
			m.first++
		case "up", "k":
			m.first--
		case "pgdown", "space":
			m.first += m.height - 2
		case "pgup":
			m.first -= m.height - 2
		case "home", "g":
			m.first = 0
		case "end", "G":
			m.first = m.view.length()
		}
	}
	return m, nil
}

// View implements tea.Model.
func (m *topModel) View() tea.View {
	screen := tea.NewView(m.view.screen(m.width, m.height, &m.first))
	screen.AltScreen = true
	screen.WindowTitle = "shepherd top"
	return screen
}
