package store

// SetStep makes the store call f at each write step.
func (s *Store) SetStep(f func(string)) { s.step = f }
