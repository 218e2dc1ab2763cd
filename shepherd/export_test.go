package shepherd

import "github.com/iterait/shepherd/forecast"

// ForecastBy is what a history other than the core's own makes of what the core's last
// forecast was made of.
func (s *Shepherd) ForecastBy(h *forecast.History) *forecast.Forecast {
	s.env.forecaster.mu.Lock()
	defer s.env.forecaster.mu.Unlock()
	return forecast.Simulate(s.env.forecaster.state(), h)
}
