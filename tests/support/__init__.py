"""What several test files share. Import it as ``support``: pytest puts ``tests`` on the path."""
